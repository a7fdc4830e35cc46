"""A recent table gets what has changed."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import select

from deeplambda.adapters import mysql
from deeplambda.config import Settings
from deeplambda.records.predictions import VIEW_SCHEMA
from deeplambda.state.tables import RECENT_PREDICTIONS
from serving_layer.hive_gateway.recent import bring_up_to_date

AT = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)


def row(event_id: str, label: str | None = None) -> dict[str, Any]:
    known = {
        "event_id": event_id,
        "kafka_partition": 0,
        "kafka_offset": 1,
        "occurred_at": AT,
        "predicted_at": AT,
        "model_version": 1,
        "prediction": "7",
        "confidence": 0.1 + 0.2,
        "value": None,
        "scores": '{"7":1.0}',
        "slices": None,
    }
    return {name: known[name] for name in VIEW_SCHEMA.names} | {"label": label}


def test_what_is_as_it_was_is_not_written_again(stack: Settings, own_name: str) -> None:
    engine = mysql.engine(stack, "platform")
    before = [row(f"event-{n}") for n in range(50)]
    assert bring_up_to_date(engine, RECENT_PREDICTIONS, own_name, before) == (50, 0)
    assert bring_up_to_date(engine, RECENT_PREDICTIONS, own_name, before) == (0, 0)
    after = [row("event-7", label="9"), *before[10:], row("new")]
    assert bring_up_to_date(engine, RECENT_PREDICTIONS, own_name, after, at_once=7) == (2, 9)
    with engine.connect() as connection:
        own = select(RECENT_PREDICTIONS).where(RECENT_PREDICTIONS.c.application == own_name)
        found = [dict(each) for each in connection.execute(own).mappings()]
    expected = [{"application": own_name, **each} for each in after]
    assert sorted(found, key=lambda each: each["event_id"]) == sorted(expected, key=lambda each: each["event_id"])
