"""A prediction as the values of a row."""

from datetime import UTC, datetime, timedelta, timezone

from deeplambda.records.predictions import Prediction
from deeplambda.state.tables import REALTIME_PREDICTIONS
from serving_layer.views.realtime import _row


def test_the_values_are_in_the_order_of_the_columns_and_moments_are_utc() -> None:
    east = timezone(timedelta(hours=2))
    facts = {
        "application": "digits",
        "event_id": "e",
        "kafka_partition": 3,
        "kafka_offset": 17,
        "occurred_at": datetime(2026, 1, 2, 3, 4, 5, 678901, east),
        "received_at": datetime(2026, 1, 2, 3, 0, tzinfo=UTC),
        "predicted_at": datetime(2026, 1, 2, 4, 0, tzinfo=UTC),
        "model_version": 2,
        "prediction": "7",
        "confidence": 0.5,
        "value": None,
        "replayed": True,
    }
    prediction = Prediction.model_validate(
        facts | {"scores": {"7": 0.5}, "slices": {"shop": 4}, "inference_ms": 1.0, "code_version": "0" * 12}
    )
    row = dict(zip(REALTIME_PREDICTIONS.columns.keys(), _row(prediction, "2026-01-02 05:00:00"), strict=True))
    moments = {
        "occurred_at": "2026-01-02 01:04:05.678901",
        "received_at": "2026-01-02 03:00:00",
        "predicted_at": "2026-01-02 04:00:00",
        "stored_at": "2026-01-02 05:00:00",
    }
    assert row == facts | moments | {"scores": '{"7":0.5}', "slices": '{"shop":4}'}
