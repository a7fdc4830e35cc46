"""Spark's own daemons, from the jars that pyspark ships: a master and workers that share a secret.

Source: Spark's guides on its standalone mode and on security.
"""

import os
import socket

from deeplambda.config import Settings, host_of, port_of
from deeplambda.jvm.commands import java_command
from deeplambda.jvm.files import write_private
from deeplambda.jvm.ivy import pyspark_jars

HEAP_MB = 256
_WEB_PORT = 8080


def master_command(settings: Settings) -> list[str]:
    """The master at the address of `settings.spark_master`."""
    address = settings.spark_master.removeprefix("spark://")
    arguments = ["--host", host_of(address), "--port", str(port_of(address)), "--webui-port", str(_WEB_PORT)]
    return _daemon(settings, "org.apache.spark.deploy.master.Master", arguments)


def worker_command(settings: Settings, cores: int, memory: str) -> list[str]:
    """A worker that offers `cores` task slots and `memory` (such as `3g`) to the executors it starts."""
    scratch = settings.data_dir / "spark"
    arguments = ["--cores", str(cores), "--memory", memory, "--host", socket.gethostname(), "--work-dir", str(scratch)]
    command = _daemon(settings, "org.apache.spark.deploy.worker.Worker", [*arguments, settings.spark_master])
    os.environ["SPARK_SCALA_VERSION"] = "2.13"  # Spark's start scripts name it to what builds the executors' commands
    os.environ["SPARK_LOCAL_DIRS"] = str(scratch)  # where its executors keep what does not fit into memory
    return command


def _daemon(settings: Settings, main_class: str, arguments: list[str]) -> list[str]:
    scratch = settings.data_dir / "spark"
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
        # Executors tell of each task, in files that lie in memory here and count as the container's.
        "spark.executor.logs.rolling.strategy": "size",
        "spark.executor.logs.rolling.maxSize": str(10 * 1024 * 1024),
        "spark.executor.logs.rolling.maxRetainedFiles": "2",
    }
    return "".join(f"{name} {value}\n" for name, value in values.items())
