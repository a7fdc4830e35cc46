"""SQLAlchemy on `hive://`: what a stranger's tools do."""

import socket
from datetime import datetime, timedelta, timezone
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from pyhive.hive import Connection
from sqlalchemy import Engine, Integer, MetaData, Table, cast, create_engine, inspect, select, text

from deeplambda.adapters import hive
from deeplambda.config import Settings
from deeplambda.errors import BadInput, ConfigurationError


def test_a_plain_select_has_typed_values(hive_engine: Engine) -> None:
    with hive_engine.connect() as connection:
        row = connection.execute(text("SELECT 1 AS a, 'x' AS b, CAST(NULL AS INT) AS c, :d AS d"), {"d": "it's"}).one()
    assert tuple(row) == (1, "x", None, "it's")


def test_parameters_keep_their_values(hive_engine: Engine) -> None:
    moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=2)))
    asked = text(
        "SELECT :d = 0.1BD, :n + 1, CAST(:at AS TIMESTAMP) = TIMESTAMP '2026-01-02 01:04:05', '100%' LIKE :like"
    )
    with hive_engine.connect() as connection:
        found = connection.execute(asked, {"d": Decimal("0.1"), "n": np.int64(2), "at": moment, "like": "%\\%"}).one()
    assert tuple(found) == (True, 3, True, True)


def test_tables_and_views_are_found_by_their_names(hive_engine: Engine) -> None:
    found = inspect(hive_engine)
    assert "digits" in found.get_schema_names()
    assert {"events", "examples", "labels", "models", "predictions"} <= set(found.get_table_names(schema="digits"))
    assert "examples" in found.get_table_names(schema="lake.digits")
    assert "realtime_predictions" in found.get_table_names(schema="mysql.deeplambda")
    assert found.get_view_names(schema="digits") == ["all_predictions"]
    assert found.has_table("examples", schema="digits")
    assert not found.has_table("nope", schema="digits")


def test_a_table_is_reflected_and_selected_from(hive_engine: Engine) -> None:
    table = Table("all_predictions", MetaData(), schema="digits", autoload_with=hive_engine)
    assert {"event_id", "prediction", "confidence", "view"} <= set(table.columns.keys())
    query = select(table.c.event_id, cast(table.c.prediction, Integer)).where(table.c.event_id.like("it's%")).limit(3)
    with hive_engine.connect() as connection:
        assert connection.execute(query).all() == []


def test_a_whole_schema_is_reflected(hive_engine: Engine) -> None:
    metadata = MetaData()
    metadata.reflect(hive_engine, schema="digits")
    assert "digits.examples" in metadata.tables


def test_pandas_reads_it(hive_engine: Engine) -> None:
    frame = pd.read_sql(text("SELECT split, COUNT(*) AS n FROM lake.digits.examples GROUP BY split"), hive_engine)
    assert list(frame.columns) == ["split", "n"]
    assert list(pd.read_sql_table("model_metrics", hive_engine, schema="digits").columns)[:2] == ["version", "split"]


def test_the_platforms_engine_is_the_analysts(stack: Settings) -> None:
    with hive.engine(stack).connect() as connection:
        assert connection.execute(text("SELECT 1")).scalar() == 1
        with pytest.raises(BadInput, match="READ_ONLY"), hive.hive_errors():
            connection.execute(text("DROP TABLE lake.digits.examples"))


def test_a_pooled_connection_that_has_gone_is_replaced(stack: Settings) -> None:
    engine = hive.engine(stack)
    with engine.connect() as connection:
        pooled = connection.connection.dbapi_connection
        assert isinstance(pooled, Connection)
        pooled._transport._trans.handle.shutdown(socket.SHUT_RDWR)  # as a gateway does that is stopped
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT 1")) == 1
        assert connection.connection.dbapi_connection is not pooled


def test_an_unknown_table_is_told_in_a_sentence(stack: Settings) -> None:
    with pytest.raises(BadInput, match=r"digits`\.`nope") as told, hive.hive_errors():
        hive.connect(stack).cursor().execute("SELECT * FROM digits.nope")
    assert "\n" not in str(told.value)


def test_a_wrong_password_is_refused(stack: Settings) -> None:
    stranger = create_engine(f"hive://analyst:wrong@{stack.hive_address}/default?auth=CUSTOM")
    with pytest.raises(ConfigurationError, match="refused"), hive.hive_errors(), stranger.connect():
        pass


def test_the_dialect_has_a_name_of_its_own(stack: Settings) -> None:
    password = stack.analyst_password.get_secret_value()
    own = create_engine(f"hive+deeplambda://analyst:{password}@{stack.hive_address}/digits")
    assert "examples" in inspect(own).get_table_names()
