"""Killed, taken down, destroyed: the stack comes back with everything it had."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import urllib3
from numpy.typing import NDArray
from sqlalchemy import text

from deeplambda.adapters import hive, mysql
from deeplambda.config import Settings
from tests.compose.conftest import Compose
from tests.traffic import assert_survived, eventually, realtime_ids, send_digits


@pytest.mark.parametrize("service", ["kafka", "mysql", "model", "spark-worker", "stream"])
def test_a_killed_container_loses_and_doubles_nothing(
    service: str,
    compose: Compose,
    client: Settings,
    demo: str,
    test_images: NDArray[np.uint8],
    healthy: Callable[[], bool],
) -> None:
    assert_survived(client, f"kill-{service}", test_images, lambda: compose.kill(service), timeout_s=240)
    assert healthy()


def test_an_upgrade_loses_and_doubles_nothing(
    compose: Compose, client: Settings, demo: str, test_images: NDArray[np.uint8]
) -> None:
    def upgrade() -> None:
        compose.script("docker", "tag", "deeplambda", "deeplambda:next")
        compose("up", "--detach", "--wait", "--wait-timeout", "300", DEEPLAMBDA_IMAGE="deeplambda:next")
        assert compose.inspect("stream")["Config"]["Image"] == "deeplambda:next"

    assert_survived(client, "upgrade", test_images, upgrade, rate=200)
    compose.up()


def test_down_and_up_again_keeps_everything(compose: Compose, client: Settings, demo: str) -> None:
    before = settled(client)
    compose("down")
    compose.up()
    assert contents(client) == before
    assert_champion_serves(client)


def test_a_backup_brings_back_what_was_destroyed(
    compose: Compose, client: Settings, demo: str, test_images: NDArray[np.uint8], tmp_path: Path
) -> None:
    before = settled(client)
    compose("up", "--detach", "--no-deps", "--wait", "--scale", "model=2", "model")
    ran = {each["ID"] for each in compose.containers() if each["State"] == "running"}
    compose.script("scripts/backup", str(tmp_path / "copy"))
    assert {each["ID"] for each in compose.containers() if each["State"] == "running"} == ran
    compose("down", "--volumes")
    compose.script("scripts/restore", str(tmp_path / "copy"))
    assert contents(client) == before
    assert_champion_serves(client)
    ledger = send_digits(client, "after-restore", test_images[:1000])
    assert eventually(lambda: sorted(realtime_ids(client, "after-restore")) == sorted(ledger), timeout_s=120)


def test_a_damaged_backup_is_refused(compose: Compose, tmp_path: Path) -> None:
    (tmp_path / "mysql-data.tar.gz").write_bytes(b"not what was copied")
    (tmp_path / "SHA256SUMS").write_text(f"{'0' * 64}  mysql-data.tar.gz\n")
    said = compose.script("scripts/restore", str(tmp_path), check=False)
    assert "is damaged: nothing was changed" in said
    assert all(each["State"] == "running" or each["ExitCode"] == 0 for each in compose.containers())


def settled(client: Settings) -> dict[str, tuple[int, int]]:
    """The contents once nothing is added any more: the archive is a while behind the stream."""
    found = contents(client)

    def stands_still() -> bool:
        nonlocal found
        before, found = found, contents(client)
        return before == found

    assert eventually(stands_still, timeout_s=180, every_s=10)
    return found


def contents(client: Settings) -> dict[str, tuple[int, int]]:
    """By table, the number of rows and a checksum over all their columns."""
    found = {}
    with mysql.engine(client, "analyst").connect() as recent:
        for table in ("horizons", "model_versions", "promotions"):
            ((_, checksum),) = recent.execute(text(f"CHECKSUM TABLE {table}"))
            found[table] = (recent.scalar(text(f"SELECT count(*) FROM {table}")) or 0, checksum)
    with hive.engine(client).connect() as archive:
        tables = [f"lake.digits.{table}" for table in ("examples", "events", "predictions", "models", "model_metrics")]
        for table in [*tables, "digits.all_predictions"]:  # the union, for real-time rows are trimmed as time goes by
            query = f"SELECT count(*), sum(cast(xxhash64(*) AS DECIMAL(38))) FROM {table}"
            rows, checksum = archive.execute(text(query)).one()
            found[table] = (rows, int(checksum))
    mysql.engine(client, "analyst").dispose()
    hive.engine(client).dispose()
    assert all(rows for rows, _ in found.values()), found
    return found


def assert_champion_serves(client: Settings) -> None:
    ready = f"{client.model_url}/v2/models/digits/ready"
    assert eventually(lambda: urllib3.request("GET", ready).status == 200)
