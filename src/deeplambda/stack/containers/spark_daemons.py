"""Spark's own daemons, from the jars that pyspark ships: a master and workers that share a secret.

Source: Spark's guides on its standalone mode and on security.
"""

import os
import socket
from pathlib import Path

from deeplambda.config import Settings, host_of, port_of
from deeplambda.jvm.commands import java_command
from deeplambda.jvm.files import own_folder, write_private
from deeplambda.jvm.ivy import pyspark_jars

HEAP_MB = 256
EXECUTOR_OVERHEAD_MB = 384
"""What an executor may take beyond its heap: what Spark asks a cluster for where it asks for memory in one number."""
_WEB_PORT = 8080


def master_command(settings: Settings) -> list[str]:
    """The master at the address of `settings.spark_master`."""
    address = settings.spark_master.removeprefix("spark://")
    arguments = ["--host", host_of(address), "--port", str(port_of(address)), "--webui-port", str(_WEB_PORT)]
    return _daemon(settings, "org.apache.spark.deploy.master.Master", arguments, settings.data_dir / "spark")


def worker_command(settings: Settings, cores: int, memory: str) -> list[str]:
    """A worker that offers `cores` task slots and `memory` (such as `3g`) to the executors it starts."""
    scratch = settings.data_dir / "spark"
    own = own_folder(scratch / "local")
    arguments = ["--cores", str(cores), "--memory", memory, "--host", socket.gethostname()]
    # Apart from what executors keep: of its work folder the worker clears whatever has not changed for an hour.
    arguments += ["--work-dir", str(scratch / "work")]
    command = _daemon(settings, "org.apache.spark.deploy.worker.Worker", [*arguments, settings.spark_master], own)
    os.environ["SPARK_SCALA_VERSION"] = "2.13"  # Spark's start scripts name it to what builds the executors' commands
    os.environ["SPARK_LOCAL_DIRS"] = str(own)  # where its executors keep what does not fit into memory
    return command


def _daemon(settings: Settings, main_class: str, arguments: list[str], scratch: Path) -> list[str]:
    os.environ["SPARK_HOME"] = str(pyspark_jars().parent)
    properties = write_private(scratch / "daemon.properties", _properties(settings))
    return java_command(
        main_class,
        [f"{pyspark_jars()}/*"],
        heap_mb=HEAP_MB,
        scratch=scratch,
        properties={"spark.worker.cleanup.enabled": "true"},
        arguments=["--properties-file", str(properties), *arguments],
    )


def _properties(settings: Settings) -> str:
    values = {
        "spark.authenticate": "true",
        "spark.authenticate.secret": settings.spark_secret.get_secret_value(),
        "spark.network.crypto.enabled": "true",
        "spark.master.rest.enabled": "false",  # it would take jobs from anybody
        "spark.worker.cleanup.enabled": "true",
        "spark.worker.cleanup.appDataTtl": "3600",
        # Executors tell of each task.
        "spark.executor.logs.rolling.strategy": "size",
        "spark.executor.logs.rolling.maxSize": str(10 * 1024 * 1024),
        "spark.executor.logs.rolling.maxRetainedFiles": "2",
    }
    return "".join(f"{name} {value}\n" for name, value in values.items())
