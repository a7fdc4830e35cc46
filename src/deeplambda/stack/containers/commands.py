"""What the containers run: `deeplambda containers …`. Users of `docker compose` need only `secret` of these."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from deeplambda.config import load_settings, secret_fields
from deeplambda.errors import ConfigurationError

app = typer.Typer(no_args_is_help=True)
_ROOT = Path("/secrets")


@app.command()
def secrets() -> None:
    """Refuse a machine that is too small; make the secrets that are missing, and give every service its own."""
    from deeplambda.stack.containers.doctor import check_machine
    from deeplambda.stack.containers.secrets import hand_out

    settings = load_settings()
    check_machine(settings)
    made = hand_out(settings, _ROOT)
    print(f"made {', '.join(made)}" if made else "every secret is there already")


@app.command()
def secret(name: Annotated[str, typer.Argument(help="such as analyst_password")]) -> None:
    """Print one secret, for people who connect from outside."""
    if name not in secret_fields():
        raise ConfigurationError(f"no secret {name!r}", f"there are {', '.join(secret_fields())}")
    print(getattr(load_settings(), name).get_secret_value())


@app.command()
def provision() -> None:
    """Wait for Kafka, S3 and MySQL, then create what is missing: topics, access lists, bucket, tables, accounts."""
    from deeplambda.stack.containers.provision import provision_stores

    provision_stores(load_settings(), lambda line: print(line, flush=True))


@app.command()
def metastore() -> None:
    """Become the Hive metastore."""
    from deeplambda.stack import metastore as hive_metastore

    settings = load_settings()
    hive_metastore.prepare(settings)
    _become(hive_metastore.command(settings))


@app.command("spark-master")
def spark_master() -> None:
    """Become the master of a Spark cluster."""
    from deeplambda.stack.containers.spark_daemons import master_command

    _become(master_command(load_settings()))


@app.command("spark-worker")
def spark_worker(
    cores: Annotated[int, typer.Option(envvar="DEEPLAMBDA_WORKER_CORES", help="tasks at a time")] = 4,
    memory: Annotated[str, typer.Option(envvar="DEEPLAMBDA_WORKER_MEMORY", help="for all its executors")] = "3g",
) -> None:
    """Become a worker of the cluster whose master DEEPLAMBDA_SPARK_MASTER names."""
    from deeplambda.stack.containers.spark_daemons import worker_command

    _become(worker_command(load_settings(), cores, memory))


def _become(command: list[str]) -> None:
    sys.stdout.flush()
    os.execv(command[0], command)  # noqa: S606
