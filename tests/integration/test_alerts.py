"""Grafana's alerts, asked of MySQL: just below their thresholds they are silent, just above they are not."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import Connection, delete, insert

from deeplambda.adapters import mysql
from deeplambda.clock import now
from deeplambda.config import Settings
from deeplambda.state.tables import METRICS, SKEW

ALERTS = Path(__file__).parents[2] / "deploy" / "monitoring" / "grafana" / "alerting" / "alerts.yml"


@pytest.fixture
def connection(stack: Settings) -> Iterator[Connection]:
    """Sees neither metrics nor skew but the test's own, which nobody else sees."""
    with mysql.engine(stack, "platform").connect() as made:
        for table in (METRICS, SKEW):
            made.execute(delete(table))
        yield made
        made.rollback()


def fires(connection: Connection, uid: str) -> bool:
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    (rule,) = (each for each in group["rules"] if each["uid"] == uid)
    query, compare = (each["model"] for each in rule["data"])
    (condition,) = compare["conditions"]
    assert condition["evaluator"]["type"] == "gt"
    values = [row["value"] for row in connection.exec_driver_sql(query["rawSql"]).mappings()]
    return any(value is not None and value > condition["evaluator"]["params"][0] for value in values)


def test_a_stream_that_tells_its_lag_no_more_is_silent_however_lively_the_others_are(connection: Connection) -> None:
    def told(first: int, application: str, layer: str, part: str, ago_s: int) -> None:
        row = {"layer": layer, "part": part, "name": "lag", "unit": "rows", "value": 0, "application": application}
        connection.execute(insert(METRICS), row | {"kafka_offset": first, "at": now() - timedelta(seconds=ago_s)})

    told(0, "digits", "speed", "stream", 10)
    told(1, "digits", "batch", "archive", 100)
    told(2, "fraud", "speed", "stream", 10)
    told(3, "fraud", "batch", "archive", 300)
    told(4, "fraud", "batch", "archive", 100)
    assert not fires(connection, "streams-silent")
    told(5, "sentiment", "batch", "archive", 130)
    assert fires(connection, "streams-silent")


def letters(connection: Connection, first: int, ago: timedelta, value: float, **others: str) -> None:
    row: dict[str, Any] = {"layer": "serving", "part": "views", "name": "dead_letters", "unit": "rows"} | others
    connection.execute(insert(METRICS), row | {"kafka_offset": first, "value": value, "at": now() - ago})


@pytest.mark.parametrize(("a_day", "most"), [(0, 100), (143 * 50, 500)], ids=["none before", "fifty in ten minutes"])
def test_ten_times_the_usual_dead_letters_are_a_surge(connection: Connection, a_day: int, most: int) -> None:
    letters(connection, 0, timedelta(hours=12), a_day)
    letters(connection, 1, timedelta(hours=25), 10_000)
    letters(connection, 2, timedelta(minutes=1), 10_000, name="rows")
    letters(connection, 3, timedelta(minutes=9), most)
    assert not fires(connection, "dead-letters-surge")
    letters(connection, 4, timedelta(minutes=1), 1)
    assert fires(connection, "dead-letters-surge")


def test_a_field_that_differs_in_more_than_one_event_of_a_hundred_is_skew(connection: Connection) -> None:
    assert not fires(connection, "skew"), "nothing has been compared"
    row = {"application": "digits", "version": 1, "field": "prediction", "compared": 1_000, "examples": []}
    connection.execute(insert(SKEW), row | {"different": 10, "at": now()})
    connection.execute(insert(SKEW), row | {"different": 500, "at": now() - timedelta(hours=26)})
    assert not fires(connection, "skew")
    connection.execute(insert(SKEW), row | {"field": "scores", "different": 11, "at": now() - timedelta(hours=24)})
    assert fires(connection, "skew")
