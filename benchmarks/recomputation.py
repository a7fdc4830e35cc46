"""Seconds of a recomputation after 1 % more events, against 5 % of scoring all of them plus 15 s for Spark's jobs.

Events are made of the examples that the stack has, and put where the archive stream puts its own.
"""

import secrets

from batch_layer.recompute import recompute
from benchmarks.ratio import Ratio
from benchmarks.scale.generated import archive_events
from deeplambda.adapters.lake import create_tables, spark_session
from deeplambda.config import load_settings
from deeplambda.loading import pack_application

NAME = "recomputation after 1 % more events"
AIM = 1.0
BASELINE = "5 % of scoring all + 15 s"
SHARE, START_S = 0.05, 15.0
_MORE = 0.01


def measure() -> Ratio:
    """One recomputation of all, one of what is new."""
    settings = load_settings()
    packed = pack_application("digits", settings)
    run = secrets.token_hex(4)  # events of an earlier one on the same stack would count no more
    with spark_session(settings, "benchmark") as spark:
        create_tables(spark, packed.load())
        archive_events(spark, "digits", f"all-{run}")
        whole = recompute(spark, settings, packed, whole=True)
        share = _MORE * whole.scored / spark.table("lake.digits.examples").count()
        added = archive_events(spark, "digits", f"more-{run}", min(1.0, share))
        grown = recompute(spark, settings, packed)
    if not 0.9 * added <= grown.scored <= 1.1 * added:
        raise RuntimeError(f"{grown.scored:,} events were scored, {added:,} were added")
    bound_s = SHARE * whole.duration_s + START_S
    return Ratio(
        name=NAME,
        value=grown.duration_s / bound_s,
        baseline_name=f"{BASELINE} ({whole.scored:,} events: {whole.duration_s:.0f} s)",
        baseline=bound_s,
        measured=grown.duration_s,
        unit=f"s for {grown.scored:,} events",
        aim=AIM,
        higher_is_better=False,
    )


if __name__ == "__main__":
    print(measure())
