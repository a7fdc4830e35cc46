"""Logging of the long-running parts: to stderr, which the supervisor or the container engine collects."""

import logging

_VERBOSE_LIBRARIES = ("kafka", "py4j", "botocore", "urllib3")


def log_to_stderr() -> None:
    """Log from INFO on, and from WARNING on for libraries that log a lot; each part calls this first in `main()`."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for library in _VERBOSE_LIBRARIES:
        logging.getLogger(library).setLevel(logging.WARNING)
