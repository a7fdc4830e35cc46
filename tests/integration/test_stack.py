"""The local stack itself: a small one of the test's own, beside whatever else runs."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pymysql
import pytest

from deeplambda.adapters.kafka import Publisher, end_offsets
from deeplambda.config import Settings, load_settings, port_of, secret_fields
from deeplambda.stack.local import mariadb
from deeplambda.stack.local.parts import PARTS
from deeplambda.stack.local.processes import processes_of
from tests.integration.test_views import prediction, rows, send
from tests.traffic import eventually

STORES = ("kafka", "s3", "mysql", "metastore")
ALL_PARTS = [part.name for part in PARTS]
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@contextlib.contextmanager
def data_folder() -> Iterator[Path]:
    """A new one, with a short name: sockets have a limit on their path."""
    folder = Path(tempfile.mkdtemp(prefix="deeplambda-stack-"))
    yield folder / ".deeplambda"
    shutil.rmtree(folder)


def run_in(data_dir: Path) -> Run:
    """Runs `deeplambda` against the stack of that folder alone."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DEEPLAMBDA_")}
    environment["DEEPLAMBDA_DATA_DIR"] = str(data_dir)
    command = Path(sys.executable).with_name("deeplambda")

    def call(*arguments: str, **more: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [command, *arguments], capture_output=True, text=True, env=environment | more, timeout=300, check=False
        )

    return call


@pytest.fixture(scope="module")
def data_dir() -> Iterator[Path]:
    with data_folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def run(data_dir: Path) -> Run:
    return run_in(data_dir)


@pytest.fixture(scope="module")
def stores(run: Run, data_dir: Path) -> Iterator[Settings]:
    """The settings of the running small stack."""
    started = run("up", "--free-ports", *STORES)
    assert started.returncode == 0, started.stdout + started.stderr
    load_settings.cache_clear()
    try:
        yield load_settings(data_dir)
    finally:
        run("down")


def status(run: Run) -> dict[str, dict[str, Any]]:
    return {part["part"]: part for part in json.loads(run("status", "--json").stdout)}


def pids(run: Run) -> dict[str, int]:
    return {name: part["pid"] for name, part in status(run).items() if part["pid"]}


def log_in(settings: Settings, account: str, password: str) -> "pymysql.Connection[Any]":
    return pymysql.connect(
        host="127.0.0.1",
        port=port_of(settings.mysql_address),
        user=account,
        password=password,
        database=settings.mysql_database,
    )


def test_status_shows_each_part(stores: Settings, run: Run) -> None:
    shown = status(run)
    assert list(shown) == ALL_PARTS
    for name in STORES:
        assert shown[name]["health"] == "well", shown[name]
        assert shown[name]["memory_bytes"] > 50 * 2**20
    assert shown["gateway"]["health"] == "stopped"
    assert run("status").returncode == 0


def test_up_twice_is_harmless(stores: Settings, run: Run) -> None:
    before = pids(run)
    again = run("up", *STORES)
    assert again.returncode == 0, again.stdout + again.stderr
    assert pids(run) == before


def test_up_serves_a_new_application_and_restarts_only_what_serves_applications(stores: Settings, run: Run) -> None:
    started = run("up", "views")
    assert started.returncode == 0, started.stdout + started.stderr
    before = pids(run)
    more = {"DEEPLAMBDA_APPLICATIONS": '["digits", "more"]'}
    again = run("up", "views", **more)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "restarted: applications changed" in again.stdout
    assert again.stdout.count("restarted") == 1
    after = pids(run)
    assert after["views"] != before["views"]
    assert {name: after[name] for name in STORES if name in after} == {name: before[name] for name in STORES}
    assert end_offsets(stores, "more.events") == {0: 0, 1: 0}
    environment = psutil.Process(after["views"]).environ()
    assert json.loads(environment["DEEPLAMBDA_APPLICATIONS"]) == ["digits", "more"]
    once_more = run("up", "views", **more)
    assert "restarted" not in once_more.stdout
    assert pids(run) == after
    run("down", "views")


def test_what_is_killed_comes_back_with_its_data(stores: Settings, run: Run) -> None:
    before = status(run)["kafka"]
    os.kill(before["pid"], signal.SIGKILL)

    def is_back() -> bool:
        kafka = status(run)["kafka"]
        return kafka["health"] == "well" and kafka["pid"] != before["pid"]

    assert eventually(is_back)
    assert status(run)["kafka"]["restarts"] == before["restarts"] + 1
    assert end_offsets(stores, "digits.events") == {0: 0, 1: 0}


def test_mysql_killed_while_views_write_loses_and_doubles_nothing(stores: Settings, run: Run) -> None:
    started, name = run("up", "views"), "killed"
    assert started.returncode == 0, started.stdout + started.stderr
    mysql = pids(run)["mysql"]
    with Publisher(stores) as publisher:
        for start in range(0, 3_000, 100):
            send(publisher, *(prediction(f"{name}-{n:04}", n) for n in range(start, start + 100)))
            if start == 1_000:
                os.kill(mysql, signal.SIGKILL)
    assert eventually(lambda: len(rows(stores, name)) >= 3_000, timeout_s=90)
    assert [row.event_id for row in rows(stores, name)] == [f"{name}-{n:04}" for n in range(3_000)]
    run("down", "views")


def test_nothing_listens_but_on_loopback(stores: Settings, run: Run) -> None:
    found = {
        connection.laddr.port: connection.laddr.ip
        for process in processes_of(stores, STORES)
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert set(found) >= {port for part in PARTS if part.name in STORES for port in part.ports(stores)}
    assert set(found.values()) <= {"127.0.0.1", "::ffff:127.0.0.1"}, found


def test_an_analyst_reads_results_and_nothing_else(stores: Settings) -> None:
    with log_in(stores, "analyst", stores.analyst_password.get_secret_value()) as connection:
        cursor = connection.cursor()
        cursor.execute("SELECT count(*) FROM realtime_predictions")
        for forbidden in (
            "SELECT * FROM outbox",
            "SELECT * FROM queries",
            "SELECT * FROM mysql.global_priv",
            "DELETE FROM realtime_predictions",
            "CREATE TABLE mine (a INT)",
            "SELECT LOAD_FILE('/etc/passwd') INTO OUTFILE '/tmp/deeplambda-analyst'",
        ):
            with pytest.raises(pymysql.MySQLError, match="denied"):
                cursor.execute(forbidden)


def test_the_platform_writes_rows_but_changes_no_table(stores: Settings) -> None:
    with log_in(stores, "platform", stores.mysql_platform_password.get_secret_value()) as connection:
        cursor = connection.cursor()
        cursor.execute("DELETE FROM promotions")
        with pytest.raises(pymysql.MySQLError, match="denied"):
            cursor.execute("DROP TABLE promotions")


def test_a_login_without_password_is_refused(stores: Settings) -> None:
    for account in ("root", "metastore", "platform", "views", "queries", "reader", "analyst", ""):
        with pytest.raises(pymysql.MySQLError, match="Access denied"):
            log_in(stores, account, "")


def test_every_account_of_mysql_that_logs_in_has_a_password(stores: Settings) -> None:
    with log_in(stores, "root", stores.mysql_root_password.get_secret_value()) as connection:
        cursor = connection.cursor()
        cursor.execute("SELECT User, Host FROM mysql.user WHERE authentication_string IN ('', 'invalid')")
        assert set(cursor.fetchall()) <= {("mariadb.sys", "localhost")}, "which is locked"
        cursor.execute("SELECT Host FROM mysql.user WHERE User = 'root'")
        assert sorted(cursor.fetchall()) == [("127.0.0.1",), ("localhost",)]


def test_no_secret_is_in_a_log_or_on_a_command_line(stores: Settings) -> None:
    secrets = [file.read_text() for file in (stores.data_dir / "secrets").iterdir()]
    places = [log.read_text(errors="replace") for log in (stores.data_dir / "logs").iterdir()]
    places += [" ".join(process.cmdline()) for process in processes_of(stores, STORES)]
    assert len(secrets) == len(secret_fields())
    assert len(places) >= 2 * len(STORES), "a log and a command line of each"
    assert not [secret for secret in secrets if any(secret in place for place in places)]


def test_mysql_leaves_temporary_tables_of_other_stacks_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (shared := tmp_path / "shared").mkdir()
    monkeypatch.setenv("TMPDIR", str(shared))
    (others := shared / "#sql-temptable-1-1-1.MAI").touch()
    settings = Settings(data_dir=tmp_path / "with a space")
    mariadb.prepare(settings)
    assert others.exists(), "or the first start of either fails"
    assert f"--tmpdir={settings.data_dir}/mysql/tmp" in mariadb.command(settings)


def test_a_taken_port_is_named_before_anything_starts(stores: Settings, run: Run, tmp_path: Path) -> None:
    environment = {**os.environ, "DEEPLAMBDA_DATA_DIR": str(tmp_path / "other")}
    environment["DEEPLAMBDA_S3_ENDPOINT"] = str(stores.s3_endpoint)
    command = Path(sys.executable).with_name("deeplambda")
    refused = subprocess.run([command, "up", "s3"], capture_output=True, text=True, env=environment, check=False)
    assert refused.returncode == 1
    assert f"is taken by java (pid {pids(run)['s3']})" in refused.stderr
    assert "--free-ports" in refused.stderr


def test_up_heals_a_stack_whose_supervisor_was_killed(stores: Settings, run: Run) -> None:
    os.kill(int((stores.data_dir / "run" / "supervisord.pid").read_text()), signal.SIGKILL)
    again = run("up", *STORES)
    assert again.returncode == 0, again.stdout + again.stderr
    assert {name: status(run)[name]["health"] for name in STORES} == dict.fromkeys(STORES, "well")
    assert len(processes_of(stores, STORES)) == len(STORES)


def test_down_leaves_no_process_and_twice_is_harmless() -> None:
    """On a stack of its own, of one part, for the other tests' has to stay up."""
    with data_folder() as folder:
        run = run_in(folder)
        started = run("up", "--free-ports", "s3")
        try:
            assert started.returncode == 0, started.stdout + started.stderr
            settings = load_settings(folder)
            supervisord = psutil.Process(int((folder / "run" / "supervisord.pid").read_text()))
            assert len(processes_of(settings, ["s3"])) == 1
        finally:
            done = [run("down"), run("down")]
        assert [each.returncode for each in done] == [0, 0], done
        assert processes_of(settings, ALL_PARTS) == []
        assert not supervisord.is_running()
        assert run("status").returncode == 1
