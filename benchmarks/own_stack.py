"""A stack of the benchmarks' own: real parts on free ports in a temporary folder, with a champion, gone afterwards."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deeplambda.config import load_settings
from examples.mnist import mnist_folder

STORES = ("kafka", "s3", "mysql", "metastore")
"""All that the batch layer needs."""
COMMAND = Path(sys.executable).with_name("deeplambda")


@contextmanager
def fresh_stack(*parts: str) -> Iterator[Path]:
    """Point `load_settings`, and commands that are run, at an empty stack of these parts; its folder, then removed."""
    folder, before = Path(tempfile.mkdtemp(prefix="deeplambda-")), os.environ.get("DEEPLAMBDA_DATA_DIR")
    os.environ["DEEPLAMBDA_DATA_DIR"] = str(folder / ".deeplambda")
    load_settings.cache_clear()
    try:
        subprocess.run([COMMAND, "up", "--free-ports", *parts], check=True, stdout=sys.stderr)
        load_settings.cache_clear()
        yield folder
    finally:
        subprocess.run([COMMAND, "down"], check=True, stdout=sys.stderr)
        shutil.rmtree(folder)
        os.environ.pop("DEEPLAMBDA_DATA_DIR")
        if before is not None:
            os.environ["DEEPLAMBDA_DATA_DIR"] = before
        load_settings.cache_clear()


@contextmanager
def own_stack(*parts: str) -> Iterator[None]:
    """Point `load_settings` at a fresh stack that serves digits, trained for one epoch. parts: all by default.

    `DEEPLAMBDA_TEST_DATA_DIR` names the data folder of a stack that runs already; it is used and left as it is.
    """
    if running := os.environ.get("DEEPLAMBDA_TEST_DATA_DIR"):
        os.environ["DEEPLAMBDA_DATA_DIR"] = running
        load_settings.cache_clear()
        yield
        return
    with fresh_stack(*parts) as folder:
        digits, _ = mnist_folder(folder)
        subprocess.run([COMMAND, "data", "put", "digits", digits], check=True, stdout=sys.stderr)
        subprocess.run([COMMAND, "batch", "run", "digits", "--set", "epochs=1"], check=True, stdout=sys.stderr)
        yield
