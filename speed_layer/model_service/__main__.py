"""`python -m speed_layer.model_service`: serve the champions of all applications at `model_url` until SIGTERM."""

import logging
import sys

from deeplambda.config import load_settings
from deeplambda.errors import DeepLambdaError
from speed_layer.model_service.server import ModelServer


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        ModelServer(load_settings()).run()
    except DeepLambdaError as exc:
        sys.exit(f"the model service cannot start: {exc}")


if __name__ == "__main__":
    main()
