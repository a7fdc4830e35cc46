"""Analysts on the Hive gateway: they can read everything that is theirs, and change or run nothing."""

import concurrent.futures
import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest
from pyhive import hive
from pyspark.sql import SparkSession
from sqlalchemy import URL, create_engine, text
from TCLIService import ttypes
from thrift.transport.TTransport import TTransportException

from deeplambda.config import Settings, port_of
from deeplambda.jvm.ivy import java_program, pyspark_jars
from tests.integration.own_gateway import OwnGateway, message_of, run
from tests.integration.own_model_service import OwnService
from tests.traffic import eventually

READ_ONLY = "this gateway reads only"


@pytest.fixture(scope="module")
def canary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file that nobody may read; what a statement writes would lie here too."""
    folder = tmp_path_factory.mktemp("canary")
    (folder / "secret.csv").write_text("canary-4711\n")
    return folder


@pytest.fixture(scope="module")
def app(gateway: OwnGateway, spark: SparkSession) -> str:
    """The application's name, which is its database's too; its `labels` hold one row."""
    moment, labels = "TIMESTAMP '2026-01-01 00:00:00'", f"lake.{gateway.application}.labels"
    spark.sql(f"INSERT OVERWRITE {labels} VALUES ('event-1', '7', 0, 0, {moment}, {moment})")
    return gateway.application


@pytest.fixture(scope="module")
def unharmed(gateway: OwnGateway, app: str, canary: Path) -> Iterator[None]:
    """Whatever the statements of the tests that use it were: when the last has run, nothing has happened."""
    yield
    assert gateway.rows(f"SELECT event_id, label FROM lake.{app}.labels") == [("event-1", "7")]
    assert sorted(path.name for path in canary.iterdir()) == ["secret.csv"]
    assert ("evil",) not in gateway.rows("SHOW NAMESPACES IN lake")
    tables = {row[1] for row in gateway.rows(f"SHOW TABLES IN {app}")}
    assert "labels" in tables
    assert "evil" not in tables
    assert gateway.rows(f"SELECT count(*) FROM {app}.all_predictions") == [(0,)]


@pytest.fixture(scope="module")
def session(gateway: OwnGateway, app: str) -> Iterator[hive.Connection]:
    with contextlib.closing(gateway.connect()) as connection:
        yield connection


READS = """
SELECT 1
SELECT * FROM lake.{app}.labels
SELECT * FROM {app}.labels
SELECT count(*) FROM {app}.all_predictions
SELECT count(*) FROM mysql.{mysql}.realtime_predictions
SELECT l.label, p.prediction FROM {app}.labels l LEFT JOIN mysql.{mysql}.recent_predictions p USING (event_id)
SELECT label, count(*) FROM {app}.labels GROUP BY label HAVING count(*) > 0 ORDER BY label LIMIT 5
WITH x AS (SELECT label FROM {app}.labels) SELECT * FROM x JOIN {app}.labels USING (label)
WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r WHERE n < 3) SELECT * FROM r
SELECT *, row_number() OVER (PARTITION BY label ORDER BY event_id) FROM {app}.labels
SELECT * FROM {app}.labels WHERE label IN (SELECT label FROM {app}.labels) AND EXISTS (SELECT 1)
SELECT label FROM {app}.labels UNION ALL SELECT '1' INTERSECT SELECT '1' EXCEPT SELECT '2'
SELECT * FROM lake.{app}.labels.snapshots
SELECT * FROM lake.{app}.labels TIMESTAMP AS OF current_timestamp()
SELECT * FROM {app}.labels PIVOT (count(*) FOR label IN ('7', '8'))
SELECT * FROM {app}.labels TABLESAMPLE (50 PERCENT)
SELECT * FROM {app}.labels a, LATERAL (SELECT length(a.label) AS size)
SELECT v FROM VALUES (array(1, 2)) AS t(a) LATERAL VIEW explode(a) e AS v
FROM {app}.labels |> WHERE label > '0' |> SELECT label |> LIMIT 1
TABLE {app}.labels
SHOW DATABASES
SHOW NAMESPACES IN lake
SHOW CATALOGS
SHOW TABLES IN {app}
SHOW TABLES IN mysql.{mysql}
SHOW VIEWS IN {app}
SHOW COLUMNS IN {app}.labels
SHOW CREATE TABLE {app}.labels
SHOW CREATE TABLE {app}.all_predictions
SHOW FUNCTIONS LIKE 'predict_*'
DESCRIBE lake.{app}.labels
DESCRIBE EXTENDED mysql.{mysql}.realtime_predictions
DESCRIBE {app}.all_predictions
DESCRIBE NAMESPACE lake.{app}
DESCRIBE FUNCTION predict_{app}
DESCRIBE QUERY SELECT 1 AS x
EXPLAIN FORMATTED SELECT * FROM {app}.all_predictions
USE {app}
SELECT count(*) FROM all_predictions
""".strip().splitlines()


@pytest.mark.parametrize("statement", READS)
def test_reading_works(session: hive.Connection, gateway: OwnGateway, app: str, statement: str) -> None:
    answer = run(session, statement.format(app=app, mysql=gateway.settings.mysql_database))
    for secret in ("analyst", "mysql_reader", "mysql_root", "mysql_platform", "s3_secret"):
        field = "s3_secret_key" if secret == "s3_secret" else f"{secret}_password"
        assert getattr(gateway.settings, field).get_secret_value() not in str(answer)


REFUSED = """
INSERT INTO lake.{app}.labels SELECT * FROM lake.{app}.labels
INSERT INTO mysql.{mysql}.promotions SELECT * FROM mysql.{mysql}.promotions
INSERT OVERWRITE lake.{app}.labels SELECT * FROM lake.{app}.labels LIMIT 0
WITH x AS (SELECT * FROM {app}.labels) INSERT INTO lake.{app}.labels SELECT * FROM x
FROM {app}.labels INSERT INTO lake.{app}.labels SELECT *
FROM {app}.labels INSERT OVERWRITE DIRECTORY '{canary}/out' USING csv SELECT label
INSERT OVERWRITE LOCAL DIRECTORY '{canary}/out' SELECT label FROM {app}.labels
DELETE FROM lake.{app}.labels
UPDATE lake.{app}.labels SET label = 'hacked'
MERGE INTO lake.{app}.labels t USING (SELECT 'event-1' id) s ON t.event_id = s.id WHEN MATCHED THEN DELETE
TRUNCATE TABLE lake.{app}.labels
DROP TABLE lake.{app}.labels
dRoP/**/tAbLe IF EXISTS lake.{app}.labels
DROP TABLE mysql.{mysql}.promotions
DROP VIEW {app}.all_predictions
DROP NAMESPACE lake.{app} CASCADE
DROP DATABASE {app} CASCADE
CREATE TABLE lake.{app}.evil (a INT) USING iceberg
CREATE TABLE lake.{app}.evil USING iceberg AS SELECT 1 a
CREATE TABLE {app}.evil (a STRING) USING csv LOCATION '{canary}'
CREATE EXTERNAL TABLE {app}.evil (a STRING) LOCATION '{canary}'
CREATE TABLE mysql.{mysql}.evil (a INT)
CREATE VIEW {app}.evil AS SELECT 1 a
CREATE OR REPLACE VIEW {app}.all_predictions AS SELECT 1 a
CREATE TEMPORARY VIEW evil USING csv OPTIONS (path '{canary}/secret.csv')
CREATE GLOBAL TEMPORARY VIEW evil AS SELECT 1
CREATE NAMESPACE lake.evil
CREATE FUNCTION evil AS 'org.apache.hadoop.hive.ql.udf.generic.GenericUDFReflect'
CREATE TEMPORARY FUNCTION evil AS 'java.lang.Runtime' USING JAR '{canary}/evil.jar'
CREATE TEMPORARY FUNCTION evil(x INT) RETURNS INT RETURN x + 1
ALTER TABLE lake.{app}.labels ADD COLUMN evil INT
ALTER TABLE lake.{app}.labels SET TBLPROPERTIES ('evil' = 'yes')
ALTER TABLE lake.{app}.labels CREATE BRANCH evil
ALTER TABLE lake.{app}.labels WRITE ORDERED BY label
ALTER VIEW {app}.all_predictions AS SELECT 2
COMMENT ON TABLE lake.{app}.labels IS 'evil'
CALL lake.system.rollback_to_snapshot('{app}.labels', 1)
CALL lake.system.expire_snapshots(table => '{app}.labels', older_than => TIMESTAMP '2100-01-01 00:00:00')
EXPLAIN CALL lake.system.expire_snapshots('{app}.labels')
EXPLAIN ANALYZE TABLE lake.{app}.labels COMPUTE STATISTICS
EXECUTE IMMEDIATE 'DROP TABLE lake.{app}.labels'
BEGIN DROP TABLE lake.{app}.labels; END
SET
SET -v
SET spark.sql.runSQLOnFiles = true
SET spark.sql.catalog.evil = org.apache.iceberg.spark.SparkCatalog
SET spark.sql.catalog.mysql.password
SET TIME ZONE 'Asia/Tokyo'
RESET
DECLARE VARIABLE evil INT DEFAULT 5
ADD JAR '{canary}/evil.jar'
ADD FILE '{canary}/secret.csv'
LIST FILES
CACHE TABLE lake.{app}.labels
CLEAR CACHE
REFRESH TABLE lake.{app}.labels
ANALYZE TABLE lake.{app}.labels COMPUTE STATISTICS
LOAD DATA INPATH '{canary}/secret.csv' INTO TABLE {app}.labels
SELECT * FROM csv.`{canary}/secret.csv`
SELECT * FROM text.`{canary}/secret.csv`
SELECT * FROM binaryFile.`{canary}/secret.csv`
SELECT * FROM lake.`{canary}/table`
SELECT * FROM lake.`file:{canary}/table`.snapshots
DESCRIBE lake.`{canary}/table`
EXPLAIN SELECT * FROM text.`{canary}/secret.csv`
DESCRIBE QUERY SELECT * FROM text.`{canary}/secret.csv`
SELECT (SELECT max(value) FROM text.`{canary}/secret.csv`)
SELECT TRANSFORM(label) USING 'touch {canary}/touched' AS (x) FROM {app}.labels
SELECT TRANSFORM(label) USING 'cat {canary}/secret.csv' AS (x) FROM {app}.labels
WITH x AS (SELECT TRANSFORM(label) USING 'touch {canary}/touched' AS (y) FROM {app}.labels) SELECT * FROM x
FROM {app}.labels MAP label USING 'touch {canary}/touched' AS x
SELECT reflect('java.lang.System', 'getenv', 'AWS_SECRET_ACCESS_KEY')
SELECT java_method('java.lang.System', 'getProperty', 'user.home')
SELECT TRY_REFLECT('java.lang.System', 'getenv', 'PATH')
SELECT `reflect`('java.io.File', 'createTempFile', 'canary', 'x')
SELECT label FROM {app}.labels WHERE label IN (SELECT reflect('java.lang.System', 'getenv', 'PATH'))
SELECT IDENTIFIER('ref' || 'lect')('java.lang.System', 'getenv', 'PATH')
SELECT * FROM IDENTIFIER('lake.`{canary}/' || 'table`')
SELECT * FROM lake.{app}.labels TIMESTAMP AS OF (SELECT reflect('java.lang.System', 'getenv', 'PATH'))
SELECT * FROM lake.{app}.labels TIMESTAMP AS OF (SELECT max(committed_at) FROM lake.{app}.labels.snapshots)
SELECT * FROM mysql.{mysql}.promotions WITH (url = 'jdbc:mysql://127.0.0.1:1/?allowLoadLocalInfile=true')
SELECT * FROM mysql.{mysql}.promotions WITH (query = 'SELECT LOAD_FILE("/etc/passwd")')
SELECT * FROM STREAM lake.{app}.labels
SELECT from_xml('<a>1</a>', 'a INT', map('rowValidationXSDPath', '{canary}/secret.csv'))
SHOW TBLPROPERTIES lake.{app}.labels
""".strip().splitlines()


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("statement", REFUSED)
def test_all_else_is_refused(
    session: hive.Connection, gateway: OwnGateway, app: str, canary: Path, statement: str
) -> None:
    text_of = statement.format(app=app, mysql=gateway.settings.mysql_database, canary=canary)
    with pytest.raises(hive.OperationalError) as refusal:
        run(session, text_of)
    assert READ_ONLY in message_of(refusal.value)
    assert "canary-4711" not in message_of(refusal.value)


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize(
    "statement",
    [
        "SELECT 1; DROP TABLE lake.{app}.labels",
        "SELECT * FROM jdbc.`x`",
        "SELECT org.apache.hadoop.hive.ql.udf.generic.GenericUDFReflect('a')",
        "SELECT system.builtin.reflect('java.lang.System', 'getenv', 'PATH')",
        "SELECT * FROM evil_catalog.a.b",
        "SELECT * FROM mysql.mysql.user",
        "SELECT * FROM mysql.{mysql}.outbox",
        "!touch {canary}/touched",
        "dfs -ls /",
        "SOURCE '{canary}/secret.csv'",
    ],
)
def test_what_does_not_exist_here_fails(
    session: hive.Connection, gateway: OwnGateway, app: str, canary: Path, statement: str
) -> None:
    with pytest.raises(hive.OperationalError):
        run(session, statement.format(app=app, mysql=gateway.settings.mysql_database, canary=canary))


def test_no_variable_of_the_process_is_put_into_a_statement(gateway: OwnGateway) -> None:
    names = ["${env:AWS_SECRET_ACCESS_KEY}", "${system:user.home}", "${spark.master}", "${hiveconf:x}"]
    assert gateway.rows(f"SELECT {', '.join(repr(name) for name in names)}") == [tuple(names)]


def test_settings_sent_with_a_connection_are_ignored(gateway: OwnGateway, canary: Path) -> None:
    sent = {
        "set:hiveconf:spark.sql.runSQLOnFiles": "true",
        "set:hiveconf:spark.sql.session.timeZone": "Asia/Tokyo",
        "set:hivevar:spark.sql.variable.substitute": "true",
        "set:system:user.timezone": "Asia/Tokyo",
    }
    with contextlib.closing(gateway.connect(configuration=sent)) as connection:
        assert run(connection, "SELECT current_timezone(), '${system:user.home}'") == [("UTC", "${system:user.home}")]
        with pytest.raises(hive.OperationalError):
            run(connection, f"SELECT * FROM text.`{canary}/secret.csv`")


def test_the_end_of_a_session_disturbs_no_other(gateway: OwnGateway) -> None:
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(gateway.rows, ["SELECT 1"] * 80))
    assert answers == [[(1,)]] * 80


def test_use_in_one_session_touches_no_other(gateway: OwnGateway, app: str) -> None:
    with contextlib.closing(gateway.connect()) as one, contextlib.closing(gateway.connect(database=app)) as other:
        run(one, "USE mysql")
        assert run(other, "SELECT current_catalog(), current_database()") == [("spark_catalog", app)]
        assert run(other, "SELECT label FROM labels") == [("7",)]


@pytest.mark.parametrize(
    "login",
    [
        {"password": "wrong"},
        {"password": ""},
        {"username": "root"},
        {"username": "platform", "password": "mysql_platform_password"},
    ],
)
def test_wrong_login_is_refused(gateway: OwnGateway, login: dict[str, str]) -> None:
    if login.get("password", "").startswith("mysql_"):
        login = login | {"password": getattr(gateway.settings, login["password"]).get_secret_value()}
    with pytest.raises(TTransportException, match="validating the login"):
        gateway.connect(**login)


def test_who_has_said_no_password_holds_a_thread_for_seconds_and_no_memory(gateway: OwnGateway) -> None:
    host, _, port = gateway.settings.hive_address.rpartition(":")
    with (
        socket.create_connection((host, int(port)), timeout=30) as silent,
        socket.create_connection((host, int(port)), timeout=5) as greedy,
    ):
        greedy.sendall(b"\x01" + (50 * 2**20).to_bytes(4))  # the head of a message, which Thrift would set aside
        assert b"Invalid payload" in greedy.recv(4096), "it does not wait for the rest"
        assert silent.recv(1) == b""
    much = "x" * 300_000
    assert gateway.rows(f"SELECT length('{much}')") == [(300_000,)], "who has may say more"


def test_one_client_does_not_open_sessions_without_end(gateway: OwnGateway) -> None:
    with contextlib.closing(gateway.connect()) as connection:
        client, asked = connection._client, ttypes.TOpenSessionReq(client_protocol=0, username="analyst")
        opened = [client.OpenSession(asked) for _ in range(130)]
        said = {each.status.errorMessage for each in opened} - {None}
        assert any("as many sessions open as it may" in each for each in said), said
        for each in opened:
            if each.sessionHandle is not None:
                client.CloseSession(ttypes.TCloseSessionReq(each.sessionHandle))
    assert gateway.rows("SELECT 1") == [(1,)]


def test_the_sessions_of_a_connection_end_with_it(gateway: OwnGateway) -> None:
    for _ in range(2):
        connection = gateway.connect()
        asked = ttypes.TOpenSessionReq(client_protocol=0, username="analyst")
        for _ in range(130):
            connection._client.OpenSession(asked)
        connection._transport.close()
        assert eventually(partial(answers, gateway)), "nobody else gets in"


def answers(gateway: OwnGateway) -> bool:
    with contextlib.suppress(hive.Error):
        return gateway.rows("SELECT 1") == [(1,)]
    return False


def test_names_are_looked_up_by_plain_patterns(gateway: OwnGateway, app: str) -> None:
    with contextlib.closing(gateway.connect()) as connection:
        client, session = connection._client, connection._sessionHandle
        table = {"schemaName": app, "tableName": "all\\_pred%"}
        found = client.GetColumns(ttypes.TGetColumnsReq(session, columnName="event%", **table))
        refused = [
            client.GetColumns(ttypes.TGetColumnsReq(session, columnName="(((.+)+)+)+!", **table)),
            client.GetTables(ttypes.TGetTablesReq(session, schemaName=app, tableName="(a|a)*b")),
            client.GetSchemas(ttypes.TGetSchemasReq(session, schemaName="%a%a%a%a%a")),
            client.GetFunctions(ttypes.TGetFunctionsReq(session, functionName="[a-z]+")),
        ]
    assert found.status.statusCode == ttypes.TStatusCode.SUCCESS_STATUS
    assert ["four %" in each.status.errorMessage for each in refused] == [True] * 4


def test_sqlalchemy_reads(gateway: OwnGateway, app: str) -> None:
    settings = gateway.settings
    url = URL.create(
        "hive",
        "analyst",
        settings.analyst_password.get_secret_value(),
        "127.0.0.1",
        port_of(settings.hive_address),
        "default",
        {"auth": "CUSTOM"},
    )
    with create_engine(url).connect() as connection:
        assert connection.execute(text(f"SELECT label FROM {app}.labels")).all() == [("7",)]


def test_beeline_reads(gateway: OwnGateway, app: str, tmp_path: Path) -> None:
    settings = gateway.settings
    (tmp_path / "password").write_text(settings.analyst_password.get_secret_value())
    beeline = [
        java_program(),
        f"-Duser.home={tmp_path}",
        "-cp",
        f"{pyspark_jars()}/*",
        "org.apache.hive.beeline.BeeLine",
    ]
    beeline += ["-u", f"jdbc:hive2://{settings.hive_address}/{app}", "-n", "analyst", "-w", str(tmp_path / "password")]
    done = subprocess.run(
        [*beeline, "--outputformat=csv2", "-e", "SELECT event_id, label FROM labels"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "event-1,7" in done.stdout, done.stderr[-2000:]


def test_one_who_takes_much_does_not_stop_the_others(gateway: OwnGateway) -> None:
    with contextlib.closing(gateway.connect()) as greedy, contextlib.closing(greedy.cursor()) as cursor:
        cursor.execute("SELECT count(*) FROM range(1e7) a JOIN range(1e7) b ON a.id + b.id > 7", async_=True)
        assert gateway.rows("SELECT sum(id) FROM range(1000)") == [(499500,)]
        cursor.cancel()


_DIGITS = "(SELECT * FROM VALUES (0), (1), (2), (3), (4), (5), (6), (7), (8), (9) AS t(x))"


@pytest.mark.parametrize(
    "endless",
    [
        "SELECT sum(hash(id)) FROM range(1e15)",
        f"SELECT sum(hash({', '.join(f't{n}.x' for n in range(12))})) FROM "
        + ", ".join(f"{_DIGITS} t{n}" for n in range(12)),
        "SELECT sum(hash(a, b, c)) FROM VALUES (sequence(1, 100000)) AS t(s) "
        "LATERAL VIEW explode(s) AS a LATERAL VIEW explode(s) AS b LATERAL VIEW explode(s) AS c",
        "SELECT sum(hash(a.id, b.id)) FROM range(1e6) a CROSS JOIN range(1e6) b",
    ],
    ids=["range", "joins of small tables", "explode", "cartesian"],
)
def test_a_cancelled_query_uses_no_processor(gateway: OwnGateway, endless: str) -> None:
    with contextlib.closing(gateway.connect()) as session, contextlib.closing(session.cursor()) as cursor:
        cursor.execute(endless, async_=True)
        assert eventually(lambda: not _idle(gateway))
        cursor.cancel()
    assert eventually(lambda: _idle(gateway), timeout_s=20)


BACKTRACKS = f"concat(repeat('a', 200), id) RLIKE '{'.*' * 12}!'"
ENDLESS = {
    "a statement's thread": f"SELECT count(*) FROM (SELECT '' AS id) WHERE {BACKTRACKS}",
    "a task": f"SELECT count(*) FROM range(1) WHERE {BACKTRACKS}",
    "the scheduler": f"SELECT id FROM range(0, 2, 1, 2) ORDER BY {BACKTRACKS} LIMIT 1",
}
"""By where Spark evaluates it."""


@pytest.mark.long
@pytest.mark.parametrize("where", ENDLESS)
def test_a_statement_that_nothing_ends_has_the_gateway_start_anew(
    stack: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setenv("DEEPLAMBDA_SPARK_OPTIONS", "spark.sql.thriftServer.queryTimeout=10s")
    with OwnGateway(OwnService(stack, tmp_path), tmp_path).running() as own:
        with pytest.raises((hive.Error, TTransportException)):  # at the limit, or when the process ends
            own.rows(ENDLESS[where])
        assert own.process is not None
        assert own.process.wait(timeout=120) == 1
    assert "met the time limit 60 s ago cannot be ended" in own.log.read_text()


@pytest.mark.long
def test_a_statement_that_fills_the_disk_is_ended(
    stack: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEEPLAMBDA_SPARK_OPTIONS", "spark.deeplambda.gateway.diskLimit=20m")
    ten = "(SELECT * FROM VALUES (1), (2), (3), (4), (5), (6), (7), (8), (9), (10) AS t(x))"
    rows = f"SELECT sha2(concat({', '.join(f't{n}.x' for n in range(8))}), 512) AS h FROM " + ", ".join(
        f"{ten} AS t{n}" for n in range(8)
    )
    with OwnGateway(OwnService(stack, tmp_path), tmp_path).running() as own:
        with pytest.raises(hive.Error, match="too much to disk"):
            own.rows(f"SELECT max(n) FROM (SELECT h, row_number() OVER (PARTITION BY h ORDER BY h) AS n FROM ({rows}))")
        assert own.rows("SELECT 1") == [(1,)]


def test_a_query_may_be_cancelled_at_any_moment(gateway: OwnGateway) -> None:
    """Spark compiles a stage and submits it in a thread of its own, which a cancellation does not stop."""
    with contextlib.closing(gateway.connect()) as session:
        for after_ms in range(0, 500, 20):
            sums = ", ".join(f"sum(hash(id, {after_ms}, {n}))" for n in range(40))  # compiled each time
            with contextlib.closing(session.cursor()) as cursor:
                cursor.execute(f"SELECT {sums} FROM range(1e15)", async_=True)
                time.sleep(after_ms / 1000)  # the moment
                cursor.cancel()
    assert eventually(lambda: _idle(gateway), timeout_s=20)


def _idle(gateway: OwnGateway) -> bool:
    before_s = sum(gateway.process_times())
    time.sleep(1)  # the span that is measured
    return sum(gateway.process_times()) - before_s < 0.5


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT repeat('x', 2000000000)",
        "SELECT id, repeat('x', 1000) FROM range(1e7)",
        "SELECT collect_list(repeat('x', 1000)) FROM range(1e7)",
        "SELECT size(sequence(1, 300000000))",
    ],
)
def test_gateway_outlives_a_query_without_memory(gateway: OwnGateway, statement: str) -> None:
    with pytest.raises(hive.OperationalError):
        gateway.rows(statement)
    assert gateway.rows("SELECT 1") == [(1,)]


def test_no_secret_on_a_command_line_or_in_the_log(gateway: OwnGateway) -> None:
    names = ("analyst_password", "mysql_reader_password", "mysql_views_password", "s3_secret_key")
    secrets = [getattr(gateway.settings, name).get_secret_value() for name in names]
    assert all(secrets), "an empty one would be found everywhere"
    shown = [gateway.log.read_text()]
    for process in gateway.processes():
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended meanwhile
            shown.append(" ".join(process.cmdline()))
    assert not [secret for secret in secrets if any(secret in place for place in shown)]
