"""The JSON forms on Kafka are public: what a consumer wrote against them last year still reads them."""

from datetime import UTC, datetime

import pytest
from pydantic_core import from_json

from deeplambda.records import topics
from deeplambda.records.experiments import SHADOW_RECORD
from deeplambda.records.lifecycle import LIFECYCLE_RECORD
from deeplambda.records.predictions import VIEW_SCHEMA, Prediction, json_text
from deeplambda.records.runtime_metrics import RuntimeMetric

AT = "2026-01-02T03:04:05Z"
VERDICT = {
    "version": 2,
    "reasons": [],
    "comparisons": [
        {
            "split": "test",
            "against": 1,
            "role": "champion",
            "metric": "accuracy",
            "slice": None,
            "rows": 10000,
            "candidate": 0.99,
            "other": 0.98,
            "difference": 0.01,
            "low": 0.008,
            "high": 0.012,
            "p": 0.001,
            "test": "McNemar",
            "refused": False,
        }
    ],
    "figures": {"calibration_error": 0.01},
    "best": {"test": 2},
    "after": 3,
}
LIVE = VERDICT["comparisons"][0] | {"split": "live", "metric": "share_right", "test": "betting"}  # type: ignore[index]
ADDED = {"refused", "first_refusal", "code_sha256", "who", "why", "verdict"}
WRITTEN = [
    {
        "type": "PartitionPrepared",
        "application": "digits",
        "at": AT,
        "dataset": "d1",
        "split": "train",
        "partition": 0,
        "partitions": 8,
        "key": "digits/prepared/d1/train-00000.safetensors",
        "sha256": "ab",
        "rows": 7500,
        "events": 500,
        "refused": 1,
        "first_refusal": "a feature is NaN or infinite",
        "size_bytes": 23580000,
        "label_statistics": [5923.0, 1577.0],
        "duration_s": 1.5,
    },
    {
        "type": "EpochTrained",
        "application": "digits",
        "at": AT,
        "run": "r1",
        "epoch": 1,
        "epochs": 4,
        "loss": 0.1,
        "metrics": {"accuracy": 0.99},
        "validation_metrics": {"accuracy": 0.98},
        "rows": 60000,
        "duration_s": 9.5,
        "device": "cpu",
    },
    {
        "type": "ModelPublished",
        "application": "digits",
        "at": AT,
        "version": 2,
        "run": "r1",
        "weights_sha256": "ab",
        "metrics": {"accuracy": 0.99},
    },
    {
        "type": "ModelPromoted",
        "application": "digits",
        "at": AT,
        "version": 2,
        "previous": None,
        "weights_sha256": "ab",
        "code_sha256": "ef",
        "who": "ada",
        "why": "new labels",
        "verdict": VERDICT,
    },
    {
        "type": "ModelRejected",
        "application": "digits",
        "at": AT,
        "version": 3,
        "reason": "worse",
        "who": "ada",
        "why": None,
        "verdict": VERDICT,
    },
    {
        "type": "ModelRolledBack",
        "application": "digits",
        "at": AT,
        "version": 1,
        "previous": 2,
        "weights_sha256": "cd",
        "code_sha256": "ef",
        "who": "ada",
        "why": "it fails on returns",
    },
    {
        "type": "ExperimentStarted",
        "application": "digits",
        "at": AT,
        "number": 4,
        "version": 3,
        "kind": "canary",
        "champion": 2,
        "share": 0.05,
        "until_decided": True,
        "weights_sha256": "ab",
        "code_sha256": "ef",
        "who": "ada",
        "why": "new labels",
    },
    {
        "type": "ExperimentMeasured",
        "application": "digits",
        "at": AT,
        "number": 4,
        "version": 3,
        "answered": 500,
        "agreed": None,
        "failed": 1,
        "comparison": LIVE,
    },
    {
        "type": "ChallengerFailed",
        "application": "digits",
        "at": AT,
        "number": 4,
        "version": 3,
        "event_id": "a",
        "part": "stream",
        "reason": "the transform raised KeyError",
    },
    {
        "type": "ExperimentEnded",
        "application": "digits",
        "at": AT,
        "number": 4,
        "version": 3,
        "state": "rejected",
        "reason": "worse",
        "who": "canary 4",
        "comparison": LIVE,
    },
    {
        "type": "BatchViewPublished",
        "application": "digits",
        "at": AT,
        "snapshot": 9007199254740993,
        "events_snapshot": 4,
        "version": 2,
        "offsets": {"0": 5012, "1": 4988},
        "rows": 10000,
        "scored": 120,
        "taken_up": 40,
        "refused": 3,
        "missing": 1,
        "duration_s": 8.25,
    },
    {
        "type": "DriftDetected",
        "application": "digits",
        "at": AT,
        "version": 2,
        "what": "predictions",
        "window": {
            "rows": 200,
            "first_at": AT,
            "last_at": AT,
            "from_offsets": {"0": 100, "1": 90},
            "to_offsets": {"0": 200, "1": 190},
        },
        "statistic": "e-detector",
        "value": 41000.5,
        "threshold": 30000.0,
        "fields": [{"field": "confidence", "statistic": 99.5, "p": 1e-18, "psi": 0.5}],
        "examples": ["a", "b"],
    },
    *(
        {
            "type": name,
            "application": "digits",
            "at": AT,
            "reader": "archive",
            "topic": "digits.events",
            "partition": 1,
            "from_offset": 5012,
            "to_offset": 6000,
        }
        for name in ("RecordsExpired", "TopicTruncated", "RecordsSkipped")
    ),
    {
        "type": "QualityMeasured",
        "application": "digits",
        "at": AT,
        "subject": "ingest",
        "day": "2026-01-02",
        "ingest": "20260102-030405-ab12",
        "snapshot": 9007199254740993,
        "measures": [{"dimension": "completeness", "measure": "nulls", "field": "city", "value": 0.25, "rows": 40}],
        "broken": ["nulls of city is 0.25 over 40 rows, at most 0.1 is expected"],
        "branch": "ingest-20260102-030405-ab12",
    },
    {
        "type": "DataChanged",
        "application": "digits",
        "at": AT,
        "kind": "rolled_back",
        "table": "examples",
        "snapshot": 9007199254740993,
        "previous": 9007199254740994,
        "subject": None,
        "rows": 40,
        "versions": [3],
        "who": "ada",
        "why": "labels of another data set",
    },
    {
        "type": "GenerationStarted",
        "application": "digits",
        "at": AT,
        "number": 3,
        "cause": "labels",
        "why": "10,000 new labels",
        "new_labels": 10000,
    },
    {"type": "GenerationStepped", "application": "digits", "at": AT, "number": 3, "step": "train", "attempt": 2},
    {
        "type": "GenerationEnded",
        "application": "digits",
        "at": AT,
        "number": 3,
        "state": "rejected",
        "version": 5,
        "verdict": "worse",
    },
]


@pytest.mark.parametrize("written", WRITTEN, ids=lambda record: record["type"])
def test_a_fact_reads_and_writes_the_same_json(written: dict[str, object]) -> None:
    record = LIFECYCLE_RECORD.validate_python(written)
    assert from_json(record.model_dump_json()) == written


@pytest.mark.parametrize("written", WRITTEN, ids=lambda record: record["type"])
def test_a_fact_from_before_fields_were_added_is_read(written: dict[str, object]) -> None:
    of_before = not str(written["type"]).startswith(
        ("Generation", "Experiment", "DataChanged")
    )  # these came with all their fields
    old = {name: value for name, value in written.items() if not of_before or name not in ADDED}
    assert LIFECYCLE_RECORD.validate_python(old).type == written["type"]


def test_a_fact_from_a_newer_version_with_more_fields_is_read() -> None:
    assert LIFECYCLE_RECORD.validate_python(WRITTEN[3] | {"mood": "good"}).type == "ModelPromoted"


def test_a_prediction_carries_what_an_incident_asks() -> None:
    moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    record = Prediction(
        application="digits",
        event_id="a",
        kafka_partition=0,
        kafka_offset=17,
        occurred_at=moment,
        received_at=moment,
        predicted_at=moment,
        model_version=2,
        prediction="7",
        confidence=float("nan"),
        value=float("nan"),
        inference_ms=3.5,
        code_version="11455c458b6a",
    )
    assert from_json(record.model_dump_json()) == {
        "application": "digits",
        "event_id": "a",
        "kafka_partition": 0,
        "kafka_offset": 17,
        "occurred_at": AT,
        "received_at": AT,
        "predicted_at": AT,
        "model_version": 2,
        "prediction": "7",
        "confidence": None,
        "value": None,
        "scores": None,
        "slices": None,
        "inference_ms": 3.5,
        "code_version": "11455c458b6a",
        "replayed": False,
    }


def test_a_prediction_of_before_there_were_values_scores_slices_and_replays_is_read() -> None:
    written = {
        "application": "digits",
        "event_id": "a",
        "kafka_partition": 0,
        "kafka_offset": 17,
        "occurred_at": AT,
        "received_at": AT,
        "predicted_at": AT,
        "model_version": 2,
        "prediction": "7",
        "confidence": 0.9,
        "inference_ms": 3.5,
        "code_version": "11455c458b6a",
    }
    record = Prediction.model_validate(written)
    assert (record.value, record.scores, record.slices, record.replayed) == (None, None, None, False)
    added = {
        "value": 7.5,
        "scores": {"7": 0.9, "1": 0.1},
        "slices": {"shop": "a", "paid": 1.5, "new": None},
        "replayed": True,
    }
    assert from_json(Prediction.model_validate(written | added).model_dump_json()) == written | added


def test_the_columns_of_both_views_have_their_names_and_added_ones_may_be_null() -> None:
    assert VIEW_SCHEMA.names[:8] == [
        *("event_id", "kafka_partition", "kafka_offset", "occurred_at", "predicted_at", "model_version"),
        *("prediction", "confidence"),
    ]
    assert VIEW_SCHEMA.names[8:] == ["value", "scores", "slices"]
    assert all(VIEW_SCHEMA.field(name).nullable for name in VIEW_SCHEMA.names[7:])
    assert json_text({"a": 0.25, "b": 0.75}) == '{"a":0.25,"b":0.75}'
    assert json_text(None) is None


def test_a_shadow_s_pair_of_answers_reads_and_writes_the_same_json() -> None:
    said = {"version": 2, "prediction": "7", "confidence": 0.9, "value": None}
    written = {
        "type": "ShadowAnswered",
        "application": "digits",
        "experiment": 4,
        "at": AT,
        "event_id": "a",
        "kafka_partition": 0,
        "kafka_offset": 17,
        "champion": said,
        "candidate": None,
        "error": "the model raised KeyError",
    }
    assert from_json(SHADOW_RECORD.validate_python(written).model_dump_json()) == written
    shed = {"type": "ShadowShed", "application": "digits", "experiment": 4, "at": AT, "rows": 1200}
    assert from_json(SHADOW_RECORD.validate_python(shed).model_dump_json()) == shed


def test_a_measurement_names_its_unit() -> None:
    written = {
        "layer": "speed",
        "part": "stream",
        "application": "digits",
        "name": "scored",
        "value": 200.0,
        "unit": "rows",
        "kafka_partition": None,
        "at": AT,
    }
    assert from_json(RuntimeMetric.model_validate(written).model_dump_json()) == written


def test_topics_have_their_names() -> None:
    made = {topic.name: topic for topic in topics.all_topics(["digits"], partitions=3)}
    assert set(made) == {
        "deeplambda.lifecycle",
        "deeplambda.champions",
        "deeplambda.experiments",
        "deeplambda.metrics",
        "digits.events",
        "digits.predictions",
        "digits.shadow-predictions",
        "digits.labels",
        "digits.dead-letters",
    }
    assert made["digits.events"].partitions == 3
    assert made["deeplambda.champions"].config["cleanup.policy"] == "compact"
