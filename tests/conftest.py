"""Tests are marked by folder. Those beyond unit and contract share one real stack, on free ports.

Several workers of xdist share it too: each file runs in one of them, and those of `TOGETHER` in the same one.
"""

import fcntl
import functools
import gc
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import urllib3
from numpy.typing import NDArray
from pyspark.sql import SparkSession
from sqlalchemy import Engine, create_engine
from xdist.scheduler import LoadFileScheduling

from deeplambda.adapters import mysql
from deeplambda.config import Settings, load_settings
from deeplambda.idx import read_idx, write_idx
from deeplambda.service.stream_session import stream_session
from deeplambda.state import registry
from examples.mnist import mnist_folder
from tests.traffic import eventually

DIGITS_EPOCHS = 2
"""Of the loop whose model the tests use: half of its own. It has 99.2 % of MNIST's test digits right, and after a sixth
of the rows 97 %."""
LEAN = {
    # Else streams with nothing to do look every 10 ms: that and Kafka's answers take a fifth of a core.
    "DEEPLAMBDA_SPARK_OPTIONS": "spark.sql.streaming.pollingDelay=100ms",
    # Over the gateway's own: its compiler of fast code takes half a minute of a core and is worth it after many more.
    "_JAVA_OPTIONS": "-XX:TieredStopAtLevel=1",
}
"""The environment of a stack that leaves the cores to the tests."""
HERE = Path(__file__).parent
ROOT = HERE.parent
COMMAND = Path(sys.executable).with_name("deeplambda")


TOGETHER = {
    # They write topics, rows or objects of digits, read what no other may write meanwhile, or stop parts of the stack.
    "digits": {
        *("test_bad_events", "test_loop", "test_readme", "test_kill", "test_retention"),
        *("test_hive_sqlalchemy", "test_query_service", "test_serving_commands", "test_views"),
    },
    "gateway": {"test_hive_gateway", "test_union_view"},  # these share a process that takes long to start
    "model service": {"test_model_service", "test_model_service_refusals"},
}
FIRST = {"test_cooperative_worker"}
"""Files that wait most of their time: begun first, they do so beside all others."""
_RUNNING, _OWN = "DEEPLAMBDA_TEST_DATA_DIR", "DEEPLAMBDA_TEST_OWN_STACK"


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # workers inherit it; sockets have a limit on their path
        os.environ[_OWN] = f"{tempfile.gettempdir()}/deeplambda-{os.getpid()}"


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop the stack that a test, of whatever worker, has started."""
    if not hasattr(config, "workerinput") and (folder := Path(os.environ.pop(_OWN))).exists():
        subprocess.run([COMMAND, "down"], env=os.environ | {"DEEPLAMBDA_DATA_DIR": f"{folder}/.deeplambda"}, check=True)
        shutil.rmtree(folder)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling:
    return _ByFileOrGroup(config, log)


class _ByFileOrGroup(LoadFileScheduling):
    """xdist's own groups, by marks, are none with pytest 9.2."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return next((group for group, files in TOGETHER.items() if Path(file).stem in files), file)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Look for no garbage in what is imported: it stays, and is so much that each look takes a quarter of a second."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(item.path.relative_to(HERE).parts[0])
    items.sort(key=lambda item: item.path.stem not in FIRST)


@pytest.fixture(autouse=True)
def _onnx_operators_are_read_once() -> None:
    """PyTorch's exporter reads the source of all 500 anew for each model: two thirds of the export of a small one."""
    exporter = sys.modules.get("torch.onnx._internal.exporter._registration")
    if exporter and not hasattr(exporter.ONNXRegistry.from_torchlib, "cache_clear"):
        exporter.ONNXRegistry.from_torchlib = staticmethod(functools.cache(exporter.ONNXRegistry.from_torchlib))


@pytest.fixture(scope="session")
def deeplambda() -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Runs a command of the platform as a person would; fails the test with its output when it fails."""

    def run(*arguments: str, check: bool = True, timeout_s: float = 600) -> "subprocess.CompletedProcess[str]":
        done = subprocess.run(
            [COMMAND, *arguments], capture_output=True, text=True, cwd=ROOT, timeout=timeout_s, check=False
        )
        if check and done.returncode:
            pytest.fail(f"deeplambda {' '.join(arguments)} exited {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    return run


@pytest.fixture(scope="session")
def stack(deeplambda: Callable[..., "subprocess.CompletedProcess[str]"]) -> Iterator[Settings]:
    """The settings of a running full stack.

    `DEEPLAMBDA_TEST_DATA_DIR` names the data folder of a stack that runs already; it is used and left as it is.
    """
    running = os.environ.get(_RUNNING)
    data_dir = Path(running or f"{os.environ[_OWN]}/.deeplambda")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("DEEPLAMBDA_DATA_DIR", str(data_dir))
        environment.setenv("DEEPLAMBDA_APPLICATIONS_DIR", str(ROOT / "examples"))
        for name, value in LEAN.items():
            environment.setenv(name, value)
        if not running:
            data_dir.mkdir(parents=True, exist_ok=True)
            with (data_dir.parent / "started").open("a+") as started:
                fcntl.flock(started, fcntl.LOCK_EX)
                if not started.seek(0, os.SEEK_END):  # else another worker's tests have it, and may have stopped a part
                    deeplambda("up", "--free-ports")
                    started.write("by the first worker that needed it")
        load_settings.cache_clear()
        yield load_settings()
    load_settings.cache_clear()


@pytest.fixture(scope="session")
def spark(stack: Settings) -> Iterator[SparkSession]:
    """A session that writes to the lake; the process can have one only, so all files share it."""
    before = dict(os.environ)  # a session finds its credentials and its Python in the environment
    session = stream_session(stack, "test", {"spark.driver.memory": "512m"})
    yield session
    session.stop()
    os.environ.clear()
    os.environ.update(before)


@contextmanager
def hive_of(settings: Settings) -> Iterator[Engine]:
    """Hive as an analyst connects to it: by SQLAlchemy and the address alone."""
    password = settings.analyst_password.get_secret_value()
    engine = create_engine(f"hive://analyst:{password}@{settings.hive_address}/default?auth=CUSTOM")
    yield engine
    engine.dispose()


@pytest.fixture(scope="module")
def hive_engine(stack: Settings) -> Iterator[Engine]:
    with hive_of(stack) as engine:
        yield engine


@pytest.fixture(scope="session")
def mnist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the four MNIST files, or their like."""
    folder, origin = mnist_folder(tmp_path_factory.mktemp("mnist"))
    print(f"digits: {origin}")
    return folder


@pytest.fixture(scope="session")
def digits(request: pytest.FixtureRequest, mnist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the champion learns from: all of MNIST beside long tests, else a sixth of it."""
    if "not long" not in request.config.getoption("markexpr"):
        return mnist
    folder = tmp_path_factory.mktemp("digits")
    for file in mnist.glob("*-ubyte.gz"):
        rows = 10_000 if file.name.startswith("train") else 2_000
        (folder / file.name).write_bytes(write_idx(read_idx(file.read_bytes(), file.name)[:rows]))
    return folder


@pytest.fixture(scope="session")
def test_images(mnist: Path) -> NDArray[np.uint8]:
    """The images of the test split, (N, 28, 28)."""
    return read_idx((mnist / "t10k-images-idx3-ubyte.gz").read_bytes(), "test images")


@pytest.fixture(scope="session")
def champion(stack: Settings, digits: Path, deeplambda: Callable[..., "subprocess.CompletedProcess[str]"]) -> int:
    """The loop run once: raw files on S3, ingested, prepared, trained, published, promoted. The version that serves."""
    deeplambda("data", "put", "digits", str(digits))
    deeplambda("batch", "run", "digits", "--set", f"epochs={DIGITS_EPOCHS}")
    with mysql.engine(stack, "platform").connect() as connection:
        card = registry.champion(connection, "digits")
    assert card is not None

    def serving() -> bool:
        reply = urllib3.request("GET", f"{stack.model_url}/v2/models/digits", retries=urllib3.Retry(10, 0.5))
        return reply.status == 200 and str(card.version) in reply.json()["versions"]

    assert eventually(serving), f"digits/{card.version} is promoted but not served"
    return card.version
