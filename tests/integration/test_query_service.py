"""SQL over HTTP: both stores answer, nobody writes, nothing runs for ever, and every error says what to fix."""

import time
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import urllib3
from sqlalchemy import select, text

from batch_layer import live_answers
from batch_layer.live_answers import Label, LiveAnswers
from deeplambda.adapters import mysql
from deeplambda.clock import now
from deeplambda.config import Settings, port_of
from deeplambda.objective import Classification, Objective, Regression
from deeplambda.records.predictions import Prediction
from deeplambda.state.tables import LIVE_ANSWERS, QUERIES
from serving_layer.query_service import queries_table
from serving_layer.query_service.app import STATISTICS_KEPT_S
from serving_layer.query_service.messages import Answer, Applications, Health, Models, Problem, Query, Statistics
from serving_layer.query_service.mysql_queries import AT_ONCE
from serving_layer.query_service.openapi import document
from serving_layer.query_service.queries_table import QueriesTable
from serving_layer.query_service.statistics import statistics
from serving_layer.sql.guard import STATEMENT_LIMIT
from serving_layer.views.realtime import store
from serving_layer.views.rows import of_prediction
from serving_layer.views.trim import GRACE, trim
from tests.integration.test_views import prediction, show
from tests.traffic import eventually

ENDLESS = (
    "WITH RECURSIVE n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n WHERE i < 1000) "
    "SELECT COUNT(*) FROM n a, n b, n c, n d WHERE a.i + b.i + c.i + d.i > 7"
)
TEN = "(SELECT * FROM VALUES (1), (2), (3), (4), (5), (6), (7), (8), (9), (10) AS t(x))"
ENDLESS_IN_HIVE = f"SELECT SUM(hash({', '.join(f't{n}.x' for n in range(12))})) FROM " + ", ".join(
    f"{TEN} AS t{n}" for n in range(12)
)


class Service:
    """The query service, as a client sees it."""

    def __init__(self, settings: Settings) -> None:
        self.url = settings.query_url
        self._http = urllib3.PoolManager(retries=False, timeout=60)

    def call(self, method: str, path: str, **arguments: Any) -> Any:
        return self._http.request(method, self.url + path, **arguments)

    def ask(self, sql: str, **asked: Any) -> Any:
        return self.call("POST", "/v1/queries", json={"sql": sql} | asked)

    def wait(self, place: str, timeout_s: float = 90) -> Query:
        def ended() -> Query | None:
            query = Query.model_validate_json(self.call("GET", place).data)
            return query if query.status not in ("queued", "running") else None

        query = eventually(ended, timeout_s)
        assert query is not None, f"{place} did not end in {timeout_s} s"
        return query


@pytest.fixture(scope="module")
def service(stack: Settings) -> Service:
    return Service(stack)


def test_mysql_answers_at_once(service: Service) -> None:
    asked = time.monotonic()
    reply = service.ask(
        "SELECT 1 AS a, 1.50 AS b, 'ü' AS c, x'ff' AS d, NULL AS e, TIMESTAMP '2026-01-02 03:04:05' AS f"
    )
    took_ms = (time.monotonic() - asked) * 1e3
    assert reply.status == 200
    answer = Answer.model_validate_json(reply.data)
    assert answer.rows == [[1, "1.50", "ü", "/w==", None, "2026-01-02T03:04:05Z"]]
    assert [column.name for column in answer.columns] == list("abcdef")
    assert (answer.store, answer.row_count, answer.truncated) == ("mysql", 1, False)
    assert 0 < answer.elapsed_ms < took_ms


def test_hive_answers_with_a_place_to_look(service: Service) -> None:
    reply = service.ask("SELECT view, COUNT(*) AS n FROM digits.all_predictions GROUP BY view")
    assert reply.status == 202
    assert reply.headers["Retry-After"]
    query = service.wait(reply.headers["Location"])
    assert query.status == "done", query.error
    assert query.result
    assert query.result.store == "hive"
    assert [column.name for column in query.result.columns] == ["view", "n"]


def test_hive_gives_values_as_mysql_does(service: Service) -> None:
    reply = service.ask(
        "SELECT 1 AS a, CAST(1.5 AS DECIMAL(4, 2)) AS b, 'ü' AS c, X'FF' AS d, NULL AS e, "
        "TIMESTAMP '2026-01-02 03:04:05' AS f, CAST('NaN' AS DOUBLE) AS g",
        store="hive",
    )
    query = service.wait(reply.headers["Location"])
    assert query.result, query.error
    assert query.result.rows == [[1, "1.50", "ü", "/w==", None, "2026-01-02T03:04:05Z", "NaN"]]


def test_time_travel_and_metadata_tables_can_be_asked(service: Service) -> None:
    reply = service.ask("SELECT snapshot_id, committed_at FROM lake.digits.examples.snapshots ORDER BY committed_at")
    assert service.wait(reply.headers["Location"]).status == "done"


def test_what_hive_refuses_is_told(service: Service) -> None:
    query = service.wait(service.ask("SELECT nope FROM lake.digits.models").headers["Location"])
    assert query.status == "failed"
    assert query.error
    assert "nope" in query.error
    assert "\tat " not in query.error


def test_text_that_spark_hands_on_to_mysql_stays_text(service: Service) -> None:
    code = r"""SELECT COUNT(*) AS n FROM mysql.deeplambda.metrics WHERE name = 'a\\\' OR 1 = 1) -- '"""
    query = service.wait(service.ask(code).headers["Location"])
    assert query.result, query.error
    assert query.result.rows == [[0]]


def test_more_rows_than_asked_for_are_cut_and_said_to_be(service: Service) -> None:
    many = "WITH RECURSIVE n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n WHERE i < 500) SELECT a.i FROM n a, n b"
    few = Answer.model_validate_json(service.ask(many, limit=3).data)
    assert (few.row_count, few.truncated) == (3, True)
    most = Answer.model_validate_json(service.ask(many).data)
    assert (most.row_count, most.truncated) == (10_000, True)
    in_hive = service.wait(service.ask(f"SELECT a.x FROM {TEN} a, {TEN} b", store="hive", limit=7).headers["Location"])
    assert in_hive.result, in_hive.error
    assert (in_hive.result.row_count, in_hive.result.truncated) == (7, True)


def test_an_endless_query_is_ended_and_disturbs_nobody(service: Service) -> None:
    with ThreadPoolExecutor(1) as thread:
        endless, beside = thread.submit(service.ask, ENDLESS), 0
        while not endless.done():
            assert service.ask("SELECT COUNT(*) FROM horizons").status == 200
            beside += not endless.done()
    problem = Problem.model_validate_json(endless.result().data)
    assert problem.status == 422
    assert "10 s" in problem.detail
    assert beside > 2, "the first may have come before it"


def test_many_slow_statements_leave_room_for_all_else(service: Service) -> None:
    with ThreadPoolExecutor(16) as threads:
        asked, beside = [threads.submit(service.ask, ENDLESS) for _ in range(16)], 0
        while not all(each.done() for each in asked):
            assert service.call("GET", "/v1/health").status == 200
            assert service.call("GET", "/v1/health/live").status == 200
            beside += not any(each.done() and each.result().status == 422 for each in asked)
    assert beside > 2, "the first may have come before them"
    found = Counter(each.result().status for each in asked)
    assert found == {422: AT_ONCE, 503: 16 - AT_ONCE}


def test_a_page_of_another_name_that_means_this_machine_reads_nothing(service: Service) -> None:
    port = port_of(service.url)
    for path, status in (("/", 403), ("/v1/models", 403), ("/v1/health", 200)):
        assert service.call("GET", path, headers={"Host": f"evil.example:{port}"}).status == status
        assert service.call("GET", path, headers={"Host": f"localhost:{port}"}).status == 200


def test_a_query_of_hive_can_be_cancelled(service: Service) -> None:
    place = service.ask(ENDLESS_IN_HIVE, store="hive").headers["Location"]
    assert eventually(lambda: Query.model_validate_json(service.call("GET", place).data).status == "running")
    assert Query.model_validate_json(service.call("DELETE", place).data).status == "cancelled"
    assert eventually(lambda: Health.model_validate_json(service.call("GET", "/v1/health").data).running == 0)
    after = service.wait(service.ask("SELECT 1 AS a", store="hive").headers["Location"])
    assert after.result, after.error
    assert Query.model_validate_json(service.call("GET", place).data).status == "cancelled"


def test_a_long_statement_of_wide_characters_can_be_asked(service: Service) -> None:
    wide = "😀" * (STATEMENT_LIMIT - 40)
    query = service.wait(service.ask(f"SELECT length('{wide}') AS n", store="hive").headers["Location"])
    assert query.result, query.error
    assert query.result.rows == [[len(wide)]]


def test_a_query_that_a_crash_left_running_has_failed(stack: Settings) -> None:
    table, query_id = QueriesTable(mysql.engine(stack, "platform")), str(uuid.uuid4())
    table.add(query_id, "SELECT 1")
    assert table.begin(query_id)
    assert table.fail_unfinished() >= 1
    found = table.find(query_id)
    assert found
    assert found.query.status == "failed"
    assert "send it again" in (found.query.error or "")
    assert not table.end(query_id, "done"), "what has ended stays as it is"


def test_of_answers_the_newest_are_kept(stack: Settings, monkeypatch: pytest.MonkeyPatch, own_name: str) -> None:
    monkeypatch.setattr(queries_table, "ANSWERS_KEPT", 2)
    with mysql.engine(stack, "root").begin() as connection:
        connection.execute(text(f"CREATE DATABASE {own_name}"))  # no other test's answers give way
    root = mysql.engine(stack.model_copy(update={"mysql_database": own_name}), "root")
    QUERIES.create(root)
    table, ids = QueriesTable(root), [str(uuid.uuid4()) for _ in range(3)]
    answer = Answer(columns=[], rows=[[1]], row_count=1, truncated=False, elapsed_ms=1, store="hive")
    for query_id in ids:
        table.add(query_id, "SELECT 1")
        table.begin(query_id)
        assert table.end(query_id, "done", answer)
    oldest, *newest = [table.find(query_id) for query_id in ids]
    assert oldest
    assert (oldest.query.status, oldest.answer) == ("failed", None)
    assert "send it again" in (oldest.query.error or "")
    assert [Answer.model_validate_json(each.answer).rows for each in newest if each and each.answer] == [[[1]], [[1]]]


@pytest.mark.parametrize(
    ("sql", "status", "detail"),
    [
        ("DELETE FROM realtime_predictions", 403, "DELETE"),
        ("DROP TABLE lake.digits.examples", 403, "DROP"),
        ("SELECT * FROM mysql.user", 403, "mysql.user"),
        ("SELECT * FROM queries", 403, "queries"),
        ("SELECT SLEEP(100)", 403, "sleep"),
        ("SELECT * FROM text.`/etc/passwd`", 403, "no table"),
        ("SELECT reflect('java.lang.System', 'getenv', 'HOME')", 403, "reflect"),
        ("SELECT 1; SELECT 2", 403, "one statement"),
        ("SELECT FROM WHERE", 400, "cannot be read"),
        ("SELECT nope FROM metrics", 400, "nope"),
    ],
)
def test_a_statement_that_may_not_run_is_refused(service: Service, sql: str, status: int, detail: str) -> None:
    reply = service.ask(sql)
    assert reply.headers["Content-Type"] == "application/problem+json"
    problem = Problem.model_validate_json(reply.data)
    assert (reply.status, problem.status) == (status, status)
    assert detail in problem.detail
    assert problem.remedy


def test_a_syntax_error_has_its_place(service: Service) -> None:
    problem = Problem.model_validate_json(service.ask("SELECT *\nFROM metrics WHERE").data)
    assert (problem.status, problem.line) == (400, 2)


@pytest.mark.parametrize(
    ("method", "path", "arguments", "status"),
    [
        ("POST", "/v1/queries", {"body": b"{", "headers": {"Content-Type": "application/json"}}, 400),
        ("POST", "/v1/queries", {"body": b"[" * 50_000, "headers": {"Content-Type": "application/json"}}, 400),
        ("POST", "/v1/queries", {"body": b"SELECT 1"}, 415),
        ("POST", "/v1/queries", {"json": {"sql": "x" * 200_000}}, 413),
        ("POST", "/v1/queries", {"json": {}}, 422),
        ("POST", "/v1/queries", {"json": {"sql": 1}}, 422),
        ("POST", "/v1/queries", {"json": {"sql": "SELECT 1", "limit": 10_001}}, 422),
        ("POST", "/v1/queries", {"json": {"sql": "SELECT 1", "store": "oracle"}}, 422),
        ("POST", "/v1/queries", {"json": {"sql": "SELECT 1", "more": 1}}, 422),
        ("GET", "/v1/queries/00000000-0000-4000-8000-000000000000", {}, 404),
        ("DELETE", "/v1/queries/x%00y", {}, 404),
        ("PUT", "/v1/queries", {}, 405),
        ("GET", "/v1/models?application=nope", {}, 404),
        ("GET", "/v1/statistics?application=%27%20OR%201=1", {}, 404),
        ("GET", "/nope", {}, 404),
    ],
)
def test_a_bad_request_is_a_problem(
    service: Service, method: str, path: str, arguments: dict[str, Any], status: int
) -> None:
    reply = service.call(method, path, **arguments)
    assert reply.status == status
    assert reply.headers["Content-Type"] == "application/problem+json"
    assert Problem.model_validate_json(reply.data).status == status


def test_what_there_is_can_be_looked_up(service: Service, stack: Settings, champion: int) -> None:
    (digits,) = Applications.model_validate_json(service.call("GET", "/v1/applications").data).applications
    assert digits.event["properties"]["image"]["contentEncoding"] == "base64"
    assert digits.topics["events"] == "digits.events"
    models = Models.model_validate_json(service.call("GET", "/v1/models?application=digits").data).models
    assert [each.version for each in models if each.champion] == [digits.champion] == [champion]
    answer = Statistics.model_validate_json(service.call("GET", "/v1/statistics").data)
    assert answer.live.rows == sum(each.rows for each in answer.live.versions)
    assert service.call("GET", "/openapi.json").json() == document(stack.query_url)


def test_statistics_are_counted_once_for_all_who_ask_meanwhile_and_then_anew(service: Service) -> None:
    def counted_at(_: int = 0) -> datetime:
        return Statistics.model_validate_json(service.call("GET", "/v1/statistics").data).at

    with ThreadPoolExecutor(8) as pages:
        first, *others = sorted(set(pages.map(counted_at, range(8))))
    assert all(other >= first + timedelta(seconds=STATISTICS_KEPT_S) for other in others)
    assert eventually(lambda: counted_at() > first)


def test_parts_that_have_nothing_to_do_tell_that_nothing_waits(service: Service, champion: int) -> None:
    def waiting() -> dict[str, int | None]:
        return Statistics.model_validate_json(service.call("GET", "/v1/statistics").data).waiting

    assert eventually(lambda: set(waiting().values()) == {0}), (champion, waiting())


def test_the_page_loads_nothing_from_elsewhere(service: Service) -> None:
    reply = service.call("GET", "/")
    page = reply.data.decode()
    assert "default-src 'none'" in reply.headers["Content-Security-Policy"]
    assert 'src="' not in page
    assert 'href="http' not in page
    assert "digits" in page


HOUR = datetime(2026, 3, 1, 12, tzinfo=UTC)


def answered(stack: Settings, predictions: Iterable[Prediction], labels: Mapping[str, str], truth: Objective) -> None:
    """Have the views store what the stream answered, and the monitor take labels, twice."""
    rows = [of_prediction(each) for each in predictions]
    store(mysql.engine(stack, "views"), rows)
    answers = LiveAnswers(mysql.engine(stack, "platform"), rows[0].application)
    moments = (now() - timedelta(seconds=len(labels) - n) for n in range(len(labels)))
    of = [Label(event_id, label, moment) for (event_id, label), moment in zip(labels.items(), moments, strict=True)]
    for _ in range(2):
        answers.take(of, truth)


@pytest.fixture
def labelled(stack: Settings, own_name: str) -> str:
    """Of version 3's answers 90 of 100 are right, and 20 wait for a label; of version 2's one of ten is."""
    predictions = [
        prediction(
            f"{n:03}",
            n,
            application=own_name,
            occurred_at=HOUR + timedelta(minutes=n),
            model_version=3,
            slices={"shop": "a" if n < 70 else "b"},
        )
        for n in range(120)
    ]
    predictions += [
        prediction(f"old-{n}", 200 + n, application=own_name, occurred_at=HOUR, model_version=2, slices={"shop": "a"})
        for n in range(10)
    ]
    labels = {f"{n:03}": "7" if n < 90 else "1" for n in range(100)}  # so of the second hour 30 of 40 are right
    labels |= {"100": "NaN", "101": "maybe"} | {f"old-{n}": "7" if n == 0 else "1" for n in range(10)}
    answered(stack, predictions, labels, truth := Classification("0123456789"))
    LiveAnswers(mysql.engine(stack, "platform"), own_name).take([Label("102", "7", now() + timedelta(hours=1))], truth)
    return own_name


def test_live_accuracy_comes_with_its_interval(stack: Settings, labelled: str) -> None:
    version, before = statistics(mysql.engine(stack, "analyst"), labelled).labelled
    assert (before.model_version, before.rows, before.correct, before.unlabelled) == (2, 10, 1, 0)
    assert (version.model_version, version.rows, version.correct, version.accuracy) == (3, 100, 90, 0.9)
    assert version.interval_95 == pytest.approx((0.8256, 0.9448), abs=1e-4)
    assert version.unlabelled == 20


def test_live_accuracy_is_told_by_hour_and_by_class(stack: Settings, labelled: str) -> None:
    found = statistics(mysql.engine(stack, "analyst"), labelled)
    hours = [(each.model_version, each.hour, each.rows, each.correct, each.unlabelled) for each in found.labelled_hours]
    assert hours == [(3, HOUR + timedelta(hours=1), 40, 30, 20), (3, HOUR, 60, 60, 0), (2, HOUR, 10, 1, 0)]
    classes = [(each.label, each.rows, each.accuracy) for each in found.labelled_classes]
    assert classes == [("7", 90, 1.0), ("1", 10, 0.0)]


def test_live_accuracy_is_told_by_declared_slice(stack: Settings, labelled: str) -> None:
    found = statistics(mysql.engine(stack, "analyst"), labelled).labelled_slices
    assert [(each.slice, each.model_version, each.rows, each.correct, each.unlabelled) for each in found] == [
        ("shop=a", 3, 70, 70, 0),
        ("shop=b", 3, 30, 20, 20),
        ("shop=a", 2, 10, 1, 0),
    ]
    assert found[1].interval_95 == pytest.approx((0.4878, 0.8077), abs=1e-4)


def test_of_numbers_the_mean_error_comes_with_its_interval(stack: Settings, own_name: str) -> None:
    hours = [prediction(f"{n}", n, application=own_name, prediction=str(n), value=float(n)) for n in range(12)]
    errors = [1.0, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    answered(stack, hours, {f"{n}": f"{n - error}" for n, error in enumerate(errors)} | {"10": "NaN"}, Regression())
    (version,) = statistics(mysql.engine(stack, "analyst"), own_name).labelled
    assert (version.rows, version.unlabelled, version.accuracy, version.mean_absolute_error) == (10, 2, None, 5.5)
    assert version.error_interval_95 == pytest.approx((3.334, 7.666), abs=1e-3)


def test_of_answers_the_newest_are_kept_with_a_label_and_without(
    stack: Settings, own_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_answers, "LIVE_ANSWERS_KEPT", 3)
    began, views, platform = now(), mysql.engine(stack, "views"), mysql.engine(stack, "platform")
    made = [prediction(f"{n}", n, application=own_name, predicted_at=began + timedelta(seconds=n)) for n in range(10)]
    answered(stack, made, {f"{n}": "7" for n in range(5)}, Classification("0123456789"))
    show(views, own_name, GRACE, p0=10)
    assert trim(views, own_name) == 10
    LiveAnswers(platform, own_name).forget_oldest()
    with platform.connect() as connection:
        kept = connection.scalars(select(LIVE_ANSWERS.c.event_id).where(LIVE_ANSWERS.c.application == own_name))
        assert set(kept) == {"2", "3", "4", "7", "8", "9"}
