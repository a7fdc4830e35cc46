"""How long-running parts log: to stderr, where the stack's supervisor or a container engine takes it up."""

import logging

_CHATTY = ("kafka", "py4j", "botocore", "urllib3")


def log_to_stderr() -> None:
    """Platform messages from INFO on, those of chatty libraries from WARNING on."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for library in _CHATTY:
        logging.getLogger(library).setLevel(logging.WARNING)
