"""`python -m speed_layer.model_service`: serve the champions of all applications at `model_url` until SIGTERM."""

import sys

from deeplambda.config import load_settings
from deeplambda.errors import DeepLambdaError
from deeplambda.service.logs import log_to_stderr
from speed_layer.model_service.server import ModelServer


def main() -> None:
    log_to_stderr()
    try:
        ModelServer(load_settings()).run()
    except DeepLambdaError as exc:
        sys.exit(f"the model service cannot start: {exc}")


if __name__ == "__main__":
    main()
