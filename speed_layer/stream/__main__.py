"""Score events as they arrive: `python -m speed_layer.stream`."""

from deeplambda.config import load_settings
from deeplambda.service.logs import log_to_stderr
from deeplambda.service.streams import run_streams
from speed_layer.stream.query import scoring_stream, session, warm_up


def main() -> None:
    """Run until SIGTERM."""
    log_to_stderr()
    settings = load_settings()
    spark = session(settings)
    warm_up(spark)
    streams = [scoring_stream(spark, settings, name) for name in settings.applications]
    run_streams(spark, settings, layer="speed", part="stream", streams=streams)
    spark.stop()


if __name__ == "__main__":
    main()
