"""Disks of a few MB that tests fill: tmpfs in a user's own namespace, for which nobody has to be root."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from pyspark.sql import SparkSession

from deeplambda.adapters.s3 import ObjectStore
from deeplambda.config import Settings
from deeplambda.errors import NotReady
from deeplambda.stack import probes, provision
from tests.conftest import ROOT
from tests.traffic import eventually

_OWN_MOUNTS = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c")
_S3 = """
import os
from deeplambda.config import load_settings
from deeplambda.stack.local import s3
settings = load_settings()
s3.prepare(settings)
command = s3.command(settings)
os.execvp(command[0], command)
"""


def can_mount() -> bool:
    """Whether this user may mount a tmpfs in a namespace of their own."""
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*_OWN_MOUNTS, "mount -t tmpfs none /mnt"], capture_output=True, check=False).returncode == 0


def with_small_disk(folder: Path, size: str, command: list[str]) -> list[str]:
    """The command that runs another one which sees a disk of that size at `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    return [*_OWN_MOUNTS, 'mount -t tmpfs -o size="$1" small "$2" && shift 2 && exec "$@"', "sh", size, str(folder),
            *command]  # fmt: skip


class SmallS3:
    """An S3 service whose folder is a disk of its own. settings: with its address, and a bucket."""

    def __init__(self, settings: Settings, process: "subprocess.Popen[bytes]") -> None:
        self.settings, self._process = settings, process
        self._balloon = Path(f"/proc/{process.pid}/root{settings.data_dir}/s3/balloon")

    def environment(self) -> dict[str, str]:
        """Of a process that is to use it."""
        return _environment(self.settings)

    def seeing(self, command: list[str]) -> list[str]:
        """The command that runs another one which sees the disk."""
        target = f"--target={self._process.pid}"
        return ["nsenter", target, "--user", "--mount", "--preserve-credentials", f"--wd={ROOT}", *command]

    def session(self, spark: SparkSession) -> SparkSession:
        """A session in which the lake is on this service."""
        bucket = self.settings.s3_bucket
        spark.sparkContext._jsc.hadoopConfiguration().set(f"fs.s3a.bucket.{bucket}.endpoint", self.settings.s3_endpoint)
        session = spark.newSession()
        session.conf.set("spark.sql.catalog.lake.warehouse", self.settings.warehouse)
        return session

    @contextmanager
    def full(self, but_bytes: int) -> Iterator[None]:
        """Within this block, so much is left on the disk."""
        with self._balloon.open("wb", buffering=0) as balloon:
            balloon.write(bytes(but_bytes))
            free = shutil.disk_usage(self._balloon.parent).free
            os.posix_fallocate(balloon.fileno(), 0, but_bytes + free)
            balloon.truncate(free)
        try:
            yield
        finally:
            self._balloon.unlink()


@contextmanager
def small_s3(stack: Settings, size: str) -> Iterator[SmallS3]:
    """The service, until the end of the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
    settings = stack.model_copy(update={"s3_endpoint": endpoint, "s3_bucket": f"small-{uuid4().hex[:8]}"})
    command = with_small_disk(stack.data_dir / "s3", size, [sys.executable, "-c", _S3])
    process = subprocess.Popen(command, cwd=ROOT, env=_environment(settings))
    of_metastore = settings.model_copy(update={"s3_endpoint": stack.s3_endpoint})  # it makes namespaces' folders there
    try:
        assert eventually(lambda: _answers(settings), timeout_s=60)
        for each in (settings, of_metastore):
            provision.s3_bucket(each)
        yield SmallS3(settings, process)
        store = ObjectStore(of_metastore)
        store.delete(found.key for found in store.list(""))
        store.client.delete_bucket(Bucket=store.bucket)
    finally:
        process.terminate()
        process.wait(timeout=20)


def _answers(settings: Settings) -> bool:
    try:
        return bool(probes.s3(settings))
    except NotReady:
        return False


def _environment(settings: Settings) -> dict[str, str]:
    own = {"DEEPLAMBDA_S3_ENDPOINT": settings.s3_endpoint or "", "DEEPLAMBDA_S3_BUCKET": settings.s3_bucket}
    return os.environ | own | {"DEEPLAMBDA_DATA_DIR": str(settings.data_dir)}
