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

COMMAND = Path(sys.executable).with_name("deeplambda")


@contextmanager
def own_stack() -> Iterator[None]:
    """Point `load_settings` at a fresh stack that serves digits, trained for one epoch.

    `DEEPLAMBDA_TEST_DATA_DIR` names the data folder of a stack that runs already; it is used and left as it is.
    """
    if running := os.environ.get("DEEPLAMBDA_TEST_DATA_DIR"):
        os.environ["DEEPLAMBDA_DATA_DIR"] = running
        load_settings.cache_clear()
        yield
        return
    folder = Path(tempfile.mkdtemp(prefix="deeplambda-"))
    os.environ["DEEPLAMBDA_DATA_DIR"] = str(folder / ".deeplambda")
    try:
        subprocess.run([COMMAND, "up", "--free-ports"], check=True)
        digits, _ = mnist_folder(folder)
        subprocess.run([COMMAND, "data", "put", "digits", digits], check=True)
        subprocess.run([COMMAND, "batch", "run", "digits", "--set", "epochs=1"], check=True)
        load_settings.cache_clear()
        yield
    finally:
        subprocess.run([COMMAND, "down"], check=True)
        shutil.rmtree(folder)
