"""`all_predictions` while the horizon moves, real-time rows are trimmed and analysts ask all the time."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest
from pyhive import hive
from pyspark.sql import SparkSession
from sqlalchemy import delete, func, insert, select, text, update

from deeplambda.adapters import mysql
from deeplambda.adapters.lake import current_snapshot
from deeplambda.records.lifecycle import BatchViewPublished
from deeplambda.records.predictions import VIEW_SCHEMA
from deeplambda.state.horizon_store import move_horizon, read_batch_view
from deeplambda.state.tables import (
    HORIZONS,
    REALTIME_PREDICTIONS,
    RECENT_MODEL_METRICS,
    RECENT_PREDICTIONS,
    SHOWN_HORIZONS,
)
from examples.digits.application import Digits
from serving_layer.views.trim import GRACE, trim
from tests.integration.own_gateway import OwnGateway, message_of, run
from tests.integration.own_model_service import fp32_outputs, model_of
from tests.integration.test_views import prediction, store
from tests.traffic import eventually

EVENTS = 2_000
PARTITIONS = 2
SENT_AGAIN = 7
"""Every so manieth event was sent again at the end of its partition; its real-time row has that later position."""
NO_SNAPSHOT = 1
START = datetime(2026, 11, 20, 23, 59, 59, 123456, tzinfo=UTC)


def offset_of(event: int) -> int:
    return event // PARTITIONS


def row(event: int, offset: int | None = None) -> dict[str, Any]:
    return {
        "event_id": f"event-{event:05}",
        "kafka_partition": event % PARTITIONS,
        "kafka_offset": offset_of(event) if offset is None else offset,
        "occurred_at": START + timedelta(milliseconds=event),
        "predicted_at": START + timedelta(milliseconds=event, seconds=1),
        "model_version": 1,
        "prediction": str(event % 10),
        "confidence": event / EVENTS,
    }


class History:
    """Scored events in MySQL, and batch views of them that reach further each time."""

    def __init__(self, gateway: OwnGateway, spark: SparkSession) -> None:
        self.name, self._spark = gateway.application, spark
        self._engine = mysql.engine(gateway.settings, "platform")

    def score_everything(self) -> None:
        rows = [row(event, offset_of(EVENTS) + event if event % SENT_AGAIN == 0 else None) for event in range(EVENTS)]
        more = {"application": self.name, "received_at": START, "stored_at": START}
        with self._engine.begin() as connection:
            connection.execute(insert(REALTIME_PREDICTIONS), [each | more for each in rows])

    def recompute(self, horizon: int) -> int:
        """A batch view of all before the offset `horizon`, and the move; the snapshot."""
        table = f"lake.{self.name}.predictions"
        columns = self._spark.table(table).select(*VIEW_SCHEMA.names).schema
        rows = [row(event) for event in range(EVENTS) if offset_of(event) < horizon]
        self._spark.createDataFrame(rows, columns).createOrReplaceTempView("recomputed")
        self._spark.sql(f"INSERT OVERWRITE {table} SELECT {', '.join(VIEW_SCHEMA.names)} FROM recomputed")
        snapshot = current_snapshot(self._spark, table)
        assert snapshot is not None
        self.move(snapshot, horizon)
        return snapshot

    def move(self, snapshot: int, horizon: int) -> None:
        published = BatchViewPublished(
            application=self.name,
            snapshot=snapshot,
            events_snapshot=0,
            version=1,
            offsets=dict.fromkeys(range(PARTITIONS), horizon),
            rows=0,
            duration_s=0,
        )
        with self._engine.begin() as connection:
            move_horizon(connection, published, replaces=read_batch_view(connection, self.name))

    def age_what_is_shown(self) -> None:
        """As if GRACE had gone by."""
        shown = SHOWN_HORIZONS.c
        with self._engine.begin() as connection:
            for at in list(connection.scalars(select(shown.shown_at).where(shown.application == self.name))):
                own = update(SHOWN_HORIZONS).where(shown.application == self.name, shown.shown_at == at)
                connection.execute(own.values(shown_at=at - GRACE))

    def trim(self, horizon: int) -> None:
        with self._engine.begin() as connection:
            absorbed = REALTIME_PREDICTIONS.c.kafka_offset < horizon
            mine = REALTIME_PREDICTIONS.c.application == self.name
            connection.execute(delete(REALTIME_PREDICTIONS).where(mine, absorbed))

    def forget(self) -> None:
        with self._engine.begin() as connection:
            for table in (REALTIME_PREDICTIONS, HORIZONS, SHOWN_HORIZONS):
                connection.execute(delete(table).where(table.c.application == self.name))


@pytest.fixture
def history(gateway: OwnGateway, spark: SparkSession) -> Iterator[History]:
    """Nothing scored and no horizon, before the test and after it."""
    made = History(gateway, spark)
    made.forget()
    assert eventually(lambda: "VERSION AS OF" not in definition(gateway, f"{made.name}.all_predictions"), timeout_s=60)
    yield made
    made.forget()


class Asker(threading.Thread):
    """Asks one thing again and again on one connection, and keeps every answer that is not the one expected."""

    def __init__(self, gateway: OwnGateway, statement: str, expected: tuple[Any, ...]) -> None:
        super().__init__(daemon=True)
        self.answers, self.wrong, self.stop = 0, list[Any](), threading.Event()
        self._gateway, self._statement, self._expected = gateway, statement, expected

    def run(self) -> None:
        try:
            with contextlib.closing(self._gateway.connect()) as connection:
                while not self.stop.is_set():
                    answer = run(connection, self._statement)
                    if answer != [self._expected]:
                        self.wrong.append(answer)
                    self.answers += 1
        except Exception as exc:
            self.wrong.append(exc)


@pytest.mark.parametrize("moves", [2, pytest.param(8, marks=pytest.mark.long)])
def test_no_row_is_gained_or_lost_while_the_horizon_moves(gateway: OwnGateway, history: History, moves: int) -> None:
    view = f"{history.name}.all_predictions"
    history.score_everything()
    counted = "count(*), count(DISTINCT event_id), max(confidence), min(occurred_at), max(occurred_at)"
    totals = gateway.rows(f"SELECT {counted} FROM {view}")[0]
    assert totals[:2] == (EVENTS, EVENTS)
    askers = [
        Asker(gateway, f"SELECT count(*), count(DISTINCT event_id) FROM {view}", (EVENTS, EVENTS)),
        Asker(gateway, f"SELECT {counted} FROM (SELECT * FROM {view} ORDER BY event_id)", totals),
        Asker(gateway, f"SELECT count(*) FROM {view} WHERE event_id = 'event-00007'", (1,)),
    ]
    for asker in askers:
        asker.start()
    for move in range(1, moves + 1):
        horizon = move * offset_of(EVENTS) // moves
        snapshot = history.recompute(horizon)
        assert eventually(shows(gateway, view, snapshot), timeout_s=120, every_s=0.5)
        # The grace: whoever began on the old view has ended.
        begun = [asker.answers + 1 for asker in askers]
        assert eventually(
            lambda begun=begun: all(a.answers > n or a.wrong for a, n in zip(askers, begun, strict=True)), timeout_s=180
        )
        history.trim(horizon)
        assert not [asker.wrong for asker in askers if asker.wrong]
    for asker in askers:
        asker.stop.set()
        asker.join(timeout=60)
    assert not [asker.wrong for asker in askers if asker.wrong]
    assert gateway.rows(f"SELECT view, count(*) FROM {view} GROUP BY view") == [("batch", EVENTS)]


def shows(gateway: OwnGateway, view: str, snapshot: int) -> Callable[[], bool]:
    return lambda: f"VERSION AS OF {snapshot}" in definition(gateway, view)


def definition(gateway: OwnGateway, view: str) -> str:
    return str(gateway.rows(f"SHOW CREATE TABLE {view}"))


def test_a_gateway_that_cannot_replace_the_view_keeps_every_row(gateway: OwnGateway, history: History) -> None:
    view, views = f"{history.name}.all_predictions", mysql.engine(gateway.settings, "views")
    history.score_everything()
    assert eventually(shows(gateway, view, history.recompute(100)), timeout_s=60, every_s=0.5)
    log = gateway.log.stat().st_size
    history.move(NO_SNAPSHOT, 500)
    assert eventually(lambda: "the view stays as it is" in gateway.log.read_text()[log:], timeout_s=60)
    history.age_what_is_shown()
    store(views, [prediction("late", 499, application=history.name)])
    assert trim(views, history.name) == len([event for event in range(100 * PARTITIONS) if event % SENT_AGAIN])
    assert gateway.rows(f"SELECT count(DISTINCT event_id), count(*) FROM {view}") == [(EVENTS + 1, EVENTS + 1)]


def test_what_the_gateway_shows_is_trimmed_once_no_query_needs_it(gateway: OwnGateway, history: History) -> None:
    view, views = f"{history.name}.all_predictions", mysql.engine(gateway.settings, "views")
    history.score_everything()
    assert eventually(shows(gateway, view, history.recompute(offset_of(EVENTS))), timeout_s=60, every_s=0.5)
    assert trim(views, history.name) == 0
    history.age_what_is_shown()
    assert trim(views, history.name) == len([event for event in range(EVENTS) if event % SENT_AGAIN])
    assert gateway.rows(f"SELECT view, count(*) FROM {view} GROUP BY view") == [("batch", EVENTS)]


def test_both_halves_say_the_same_of_an_event(gateway: OwnGateway, history: History) -> None:
    """Times are the thing: one half comes from DATETIME(6) by JDBC, the other from Iceberg."""
    view = f"{history.name}.all_predictions"
    history.score_everything()
    columns = ", ".join(VIEW_SCHEMA.names)
    picked = f"SELECT {columns}, cast(occurred_at AS DOUBLE) FROM {view} WHERE event_id = 'event-01002'"
    assert gateway.rows(f"SELECT DISTINCT view FROM {view}") == [("realtime",)]
    realtime = gateway.rows(picked)
    snapshot = history.recompute(offset_of(EVENTS))
    assert eventually(shows(gateway, view, snapshot), timeout_s=60, every_s=0.5)
    assert gateway.rows(picked) == realtime
    expected = row(1002)
    assert realtime[0][0] == expected["event_id"]
    assert realtime[0][-1] == pytest.approx(expected["occurred_at"].timestamp(), abs=1e-6)


def sent_to_mysql(gateway: OwnGateway, statement: str) -> str:
    plan = gateway.rows(f"EXPLAIN FORMATTED {statement}")[0][0]
    return next(str(line) for line in plan.splitlines() if line.startswith("External engine query"))


def test_mysql_filters_by_horizon_and_event(gateway: OwnGateway, history: History) -> None:
    snapshot = history.recompute(100)
    view = f"{history.name}.all_predictions"
    assert eventually(shows(gateway, view, snapshot), timeout_s=60, every_s=0.5)
    sent = sent_to_mysql(gateway, f"SELECT * FROM {view} WHERE event_id IN ('event-00001', 'event-00002')")
    for part in (f"`application` = '{history.name}'", "`kafka_offset` >= 100", "`event_id` IN"):
        assert part in sent


@pytest.mark.parametrize(
    "literal",
    [
        r"x\\\' OR 1=1 -- ",  # to Spark: a backslash, a quote, and more text
        r"x\\\\\' OR 1=1 -- ",
        r"x\' OR 1=1 -- ",
        "x'' OR ''1''=''1",
        r"\\",
        "event-00001 ",
        "EVENT-00001",
        "event-0000%",
    ],
)
def test_text_of_an_analyst_never_becomes_sql_in_mysql(gateway: OwnGateway, history: History, literal: str) -> None:
    history.score_everything()
    live = f"mysql.{gateway.settings.mysql_database}.realtime_predictions"
    for condition in (f"event_id = '{literal}'", f"prediction IN ('{literal}', 'y')"):
        assert gateway.rows(f"SELECT count(*) FROM {live} WHERE {condition}") == [(0,)]


def test_one_query_reads_both_stores(gateway: OwnGateway, history: History) -> None:
    history.score_everything()
    history.recompute(100)
    found = gateway.rows(
        f"SELECT count(*) FROM lake.{history.name}.predictions b "
        f"JOIN mysql.{gateway.settings.mysql_database}.realtime_predictions r USING (event_id) "
        f"WHERE r.application = '{history.name}'"
    )
    assert found == [(100 * PARTITIONS,)]


def test_recent_tables_follow_the_batch_view(gateway: OwnGateway, history: History, spark: SparkSession) -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    table, name = f"lake.{history.name}.predictions", history.name
    spark.createDataFrame(
        [
            row(n) | {"occurred_at": now - timedelta(days=age), "confidence": None if n == 1 else 0.5}
            for n, age in ((1, 0), (2, 6), (3, 8), (4, -2))
        ],
        spark.table(table).select(*VIEW_SCHEMA.names).schema,
    ).createOrReplaceTempView("recent")
    spark.sql(f"INSERT OVERWRITE {table} SELECT {', '.join(VIEW_SCHEMA.names)} FROM recent")
    at = f"TIMESTAMP '{now.isoformat()}'"
    sent = ("7", "8", "x" * 256)
    labels = [f"('event-00001', '{label}', 0, {offset}, {at}, {at})" for offset, label in enumerate(sent)]
    spark.sql(f"INSERT INTO lake.{name}.labels VALUES {', '.join(labels)}")
    spark.sql(
        f"INSERT INTO lake.{name}.model_metrics VALUES (1, 'test', 'accuracy', 0.9, NULL, {at}), "
        f"(1, 'test', 'accuracy', 0.1, 1, {at})"
    )
    snapshot = current_snapshot(spark, table)
    assert snapshot is not None
    engine = mysql.engine(gateway.settings, "platform")
    with engine.begin() as connection:
        move_horizon(
            connection,
            BatchViewPublished(
                application=name, snapshot=snapshot, events_snapshot=0, version=1, offsets={}, rows=4, duration_s=0
            ),
            replaces=read_batch_view(connection, name),
        )

    def rows(table: Any, *columns: str) -> list[tuple[Any, ...]]:
        with engine.connect() as connection:
            statement = text(
                f"SELECT {', '.join(columns)} FROM {table.name} WHERE application = :name ORDER BY {columns[0]}"
            )
            return [tuple(each) for each in connection.execute(statement, {"name": name})]

    expected = [("event-00001", "8", None), ("event-00002", None, 0.5)]
    columns = ("event_id", "label", "confidence")
    assert eventually(lambda: rows(RECENT_PREDICTIONS, *columns) == expected, 120), rows(RECENT_PREDICTIONS, *columns)
    metrics = [(1, "test", "accuracy", 0.9)]
    assert eventually(lambda: rows(RECENT_MODEL_METRICS, "version", "split", "name", "value") == metrics, 20)
    assert rows(RECENT_PREDICTIONS, "occurred_at")[1] == (now.replace(tzinfo=None),)


def test_recent_rows_that_are_more_than_a_driver_takes_at_once_are_taken_and_what_fails_is_told(
    gateway: OwnGateway, history: History, spark: SparkSession
) -> None:
    """96 MB, of a session that takes 64; then a prediction that is longer than MySQL's column."""
    table, name, wide = f"lake.{history.name}.predictions", history.name, 24_000
    engine = mysql.engine(gateway.settings, "platform")

    def publish(rows: int, prediction: str) -> None:
        known = {"event_id": "concat('wide-', id)", "kafka_partition": "0", "kafka_offset": "id"}
        known |= {"occurred_at": "current_timestamp()", "predicted_at": "current_timestamp()", "model_version": "1"}
        known |= {"prediction": prediction, "scores": "concat('{\"', repeat(sha2(string(id), 256), 62), '\":1.0}')"}
        columns = ", ".join(f"CAST({known.get(each, 'NULL')} AS {kind}) AS {each}" for each, kind in types)
        spark.sql(f"INSERT OVERWRITE {table} SELECT {columns} FROM range({rows})")
        snapshot = current_snapshot(spark, table)
        assert snapshot is not None
        history.move(snapshot, horizon=wide)

    def held(table: Any) -> int:
        with engine.connect() as connection:
            of_name = select(func.count()).select_from(table).where(table.c.application == name)
            return connection.scalar(of_name) or 0

    types = [(each.name, each.dataType.simpleString()) for each in spark.table(table).schema]
    publish(wide, "'7'")
    assert eventually(lambda: held(RECENT_PREDICTIONS) == wide, timeout_s=120, every_s=0.5), gateway.log.read_text()
    log, metrics = gateway.log.stat().st_size, held(RECENT_MODEL_METRICS)
    at = "current_timestamp()"
    spark.sql(f"INSERT INTO lake.{name}.model_metrics VALUES (9, 'test', 'accuracy', 0.9, NULL, {at})")
    publish(1, "repeat('x', 300)")
    assert eventually(lambda: held(RECENT_MODEL_METRICS) == metrics + 1, timeout_s=60, every_s=0.5)
    assert held(RECENT_PREDICTIONS) == wide
    told = f"refresher: recent_predictions of {name} stays as it has been since"
    assert eventually(lambda: told in gateway.log.read_text()[log:], timeout_s=60)


def test_model_predicts_in_sql(gateway: OwnGateway) -> None:
    name, service = gateway.application, gateway.service
    payloads = [bytes([grey] * 784) for grey in (0, 90, 255)]
    values = ", ".join(f"('{n}', X'{payload.hex()}')" for n, payload in enumerate(payloads))
    refused = "('3', NULL), ('4', X'00')"
    statement = f"SELECT predict_{name}(image) FROM VALUES {values}, {refused} AS t(id, image) ORDER BY id"
    with service.running():
        version = service.publish(model_of(1))
        service.promote(version)
        assert service.serves(version)
        found = [prediction for (prediction,) in gateway.rows(statement)]
        for call, said in (("", "got 0 columns; give it image binary"), ("1.5D", "a column of another type")):
            assert said in refusal_of(gateway, f"SELECT predict_{name}({call})")
    outputs = fp32_outputs(
        model_of(1), {"features": Digits().transform(pa.RecordBatch.from_pydict({"image": payloads}))}
    )
    assert found == [*Digits.objective.decode(outputs).values, None, None]


def test_prediction_without_a_service_is_an_error_in_a_sentence(gateway: OwnGateway) -> None:
    statement = f"SELECT predict_{gateway.application}(CAST(repeat('a', 784) AS BINARY))"
    assert "the model service did not answer" in refusal_of(gateway, statement)


def refusal_of(gateway: OwnGateway, statement: str) -> str:
    with pytest.raises(hive.OperationalError) as refusal:
        gateway.rows(statement)
    said = message_of(refusal.value)
    assert "Traceback" not in said
    return said
