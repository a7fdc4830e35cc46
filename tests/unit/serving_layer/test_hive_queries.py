"""What becomes of Hive's queries when the table that keeps them does not."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import StaticPool

from deeplambda.config import Settings
from serving_layer.query_service.hive_queries import QUEUE_LIMIT, HiveQueries
from serving_layer.query_service.messages import Answer, Column, Query
from serving_layer.query_service.queries_table import QueriesTable
from serving_layer.sql.guard import Checked

CHECKED = Checked(sql="SELECT 1", store="hive", row_cap=1)


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    with engine.begin() as connection:
        connection.execute(
            text(
                "CREATE TABLE queries (id TEXT, statement TEXT, store TEXT, status TEXT, submitted_at DATETIME, "
                "finished_at DATETIME, result TEXT, error TEXT)"
            )
        )
    yield engine
    engine.dispose()


@pytest.fixture
def queries(engine: Engine, tmp_path: Path) -> Iterator[HiveQueries]:
    queries = HiveQueries(Settings(data_dir=tmp_path), QueriesTable(engine))
    queries.sweep()
    yield queries
    queries.stop()


def test_a_query_that_could_not_be_kept_gives_its_place_back(engine: Engine, queries: HiveQueries) -> None:
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE queries"))
    for _ in range(QUEUE_LIMIT + 1):
        with pytest.raises(DBAPIError):
            queries.submit("SELECT 1", CHECKED)
    assert queries.counts() == (0, 0)


def test_a_query_that_runs_no_more_and_whose_end_was_not_kept_has_failed(engine: Engine, queries: HiveQueries) -> None:
    QueriesTable(engine).add("1", "SELECT 1")
    found = queries.find("1")
    assert found
    assert (found.query.status, found.query.error) == ("failed", "its answer could not be kept; send it again")


def test_an_answer_is_told_as_it_was_kept(engine: Engine, queries: HiveQueries) -> None:
    answer = Answer(
        columns=[Column(name="a", type="string")],
        rows=[["ü"]],
        row_count=1,
        truncated=False,
        elapsed_ms=1,
        store="hive",
    )
    table = QueriesTable(engine)
    table.add("1", "SELECT 'ü' AS a")
    assert table.end("1", "done", answer)
    found = queries.find("1")
    assert found
    told = Query.model_validate_json(found.as_json())
    assert (told.status, told.sql, told.result) == ("done", "SELECT 'ü' AS a", answer)
