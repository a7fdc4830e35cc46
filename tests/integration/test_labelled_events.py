"""Archived events with labels are learned from, the newest of them are held out, and nothing wrong gets among them."""

from collections.abc import Mapping
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from kafka import KafkaAdminClient, TopicPartition
from pydantic_core import to_json
from pyspark.sql import SparkSession
from rich.console import Console
from sqlalchemy import select

from batch_layer.archived import archived_to
from batch_layer.console import PipelineConsole
from batch_layer.data_set import DataSet, data_set, fetch_data_set
from batch_layer.label_quality import measure_generation
from batch_layer.lineage import lineage
from batch_layer.live_answers import Label, LiveAnswers
from batch_layer.pipeline import run_pipeline
from batch_layer.prepare import prepare
from batch_layer.raw_objects import raw_key
from batch_layer.shard_format import MANIFEST, manifest_key, payload_key, prepared_prefix, read_shard, shard_key
from batch_layer.taken_back import TakenBack
from batch_layer.withdrawals import Choice, withdraw
from deeplambda.adapters import mysql
from deeplambda.adapters.kafka import client_options, create_topics, end_offsets, librdkafka_options
from deeplambda.config import Settings
from deeplambda.errors import BadInput, NotReady
from deeplambda.records.lifecycle import PartitionPrepared
from deeplambda.state import registry
from deeplambda.state.card import Card
from deeplambda.state.kept_rows import decode_payload
from deeplambda.state.tables import LIVE_ANSWERS
from serving_layer.views.realtime import store
from serving_layer.views.rows import of_prediction
from tests.integration.test_sources import Bench
from tests.integration.test_views import prediction
from tests.traffic import eventually

SENT = datetime(2026, 1, 1, tzinfo=UTC)
"""The broker's time of the first event; each comes a minute after the one before."""


class Archive:
    """What the archive streams would have written for one application."""

    def __init__(self, bench: Bench, *, labels: int = 0) -> None:
        """labels: how many there are."""
        self._bench, self._offsets = bench, {"events": 0, "labels": labels}

    def events(self, xs: Mapping[str, float | bytes]) -> None:
        """By event id, the field x (y is x + 1, so that no two payloads are alike), or bytes that are no such event."""
        now = datetime.now(UTC).isoformat()
        bodies = {
            name: x if isinstance(x, bytes) else to_json({"event_id": name, "occurred_at": now, "x": x, "y": x + 1})
            for name, x in xs.items()
        }
        self._append("events", [{"event_id": name, "value": value} for name, value in bodies.items()])

    def labels(self, labels: Mapping[str, str | None], late: timedelta = timedelta(0)) -> None:
        """By event id. late: how much later than the others by the broker's time."""
        self._append("labels", [{"event_id": name, "label": label} for name, label in labels.items()], late)

    def _append(self, table: str, rows: list[dict[str, Any]], late: timedelta = timedelta(0)) -> None:
        bench, first = self._bench, self._offsets[table]
        self._offsets[table] += len(rows)
        there = bench.spark.table(f"lake.{bench.name}.{table}")
        told = [
            row
            | {"kafka_partition": 0, "kafka_offset": n, "kafka_timestamp": SENT + n * timedelta(minutes=1) + late}
            | {"archived_at": SENT}
            for n, row in enumerate(rows, first)
        ]
        values = [[row[column] for column in there.columns] for row in told]
        bench.spark.createDataFrame(values, there.schema).coalesce(1).writeTo(f"lake.{bench.name}.{table}").append()


@pytest.fixture
def bench(spark: SparkSession, stack: Settings, tmp_path: Path) -> Bench:
    """Forty examples to train on, x from 100, and ten to test on, x from 200."""
    bench = Bench(spark, stack, tmp_path)
    bench.write(
        "x: float\n    y: float\n    reason: str | None = None\n    kafka_offset: int | None = None",
        'sources = (Csv("train.csv", label="above", event_id="id", split="train"), '
        'Csv("test.csv", label="above", event_id="id", split="test"))\n    features = Tensor("float32", (2,))',
    )

    def examples(first: int, count: int) -> str:
        return "id,x,y,above\n" + "".join(f"example-{n},{n},{n + 1},no\n" for n in range(first, first + count))

    bench.put(train__csv=examples(100, 40), test__csv=examples(200, 10))
    bench.ingest()
    return bench


def xs_of(bench: Bench, shards: list[PartitionPrepared], split: str) -> dict[int, int]:
    """By x, the label's class of each row of a split."""
    found = {}
    for shard in (each for each in shards if each.split == split):
        features, labels_N = read_shard(bench.store.get(shard.key, sha256=shard.sha256))
        for row, label in zip(features["features"], labels_N, strict=True):
            found[round(float(row[0]))] = int(label)
    return found


def prepared(bench: Bench) -> tuple[DataSet, list[PartitionPrepared]]:
    dataset = data_set(bench.spark, bench.packed)
    shards = prepare(bench.spark, bench.settings, bench.packed, dataset)
    told = fetch_data_set(bench.store, bench.name, dataset.id)
    assert told is not None
    return told, shards


def refused_shares(bench: Bench, generation: int) -> dict[str, tuple[float, int]]:
    table = bench.spark.table(f"lake.{bench.name}.data_quality")
    rows = table.where(f"ingest = 'generation-{generation}' AND measure = 'refused_labels'").collect()
    assert len({row.field for row in rows}) == len(rows)
    return {row.field: (row.value, row["rows"]) for row in rows}


def test_each_wrong_label_and_event_is_refused_by_its_reason_and_the_others_count(bench: Bench) -> None:
    archive = Archive(bench)
    archive.events({f"event-{n}": n for n in range(20)})
    archive.events({"example-100": 900, "example-200": 901})
    archive.events({"of-test": 200, "of-train": 100, "no-json": b"{", "no-field": b'{"event_id": "no-field"}'})
    archive.events({"event-3": 903})  # sent again: the first copy counts
    archive.labels({f"event-{n}": "no" for n in range(20)})
    archive.labels({"event-0": "yes", "of-test": "yes", "of-train": "yes", "no-json": "yes", "no-field": "yes"})
    archive.labels({"example-100": "yes", "example-200": "yes", "nobody": "yes", "none": "no"})
    archive.labels({"event-1": "NaN", "event-2": "maybe", "event-4": None, "event-5": "7"})
    archive.labels({"event-6": "yes"}, late=timedelta(days=36_500))

    dataset, shards = prepared(bench)
    found = dataset.labelled_events
    assert found is not None
    assert (found.events, found.recent) == (24, 5)
    assert found.refused == {
        "missing_label": 1,
        "wrong_label": 3,
        "from_the_future": 1,
        "unknown_event": 2,
        "of_an_example": 2,
        "superseded": 1,
    }
    assert dataset.left_out == {"not_json": 1, "missing_field": 1}
    train, recent = xs_of(bench, shards, "train"), xs_of(bench, shards, "recent")
    assert train.keys() == {*range(100, 140), *range(19)}
    assert train[0] == 1, "the newest label wins"
    assert {train[n] for n in range(1, 7)} == {0}, "what is refused takes no label's place"
    assert recent == {19: 0, 200: 1, 100: 1}, "the newest by the broker's time, of which two were refused"
    assert xs_of(bench, shards, "test").keys() == set(range(200, 210))
    payload = decode_payload(bench.store.get(payload_key(bench.name, dataset.id, "recent", 0)))
    assert sorted(payload["x"].to_pylist()) == [19, 100, 200]

    of_all = measure_generation(bench.spark, bench.settings, bench.packed, dataset, 1, {})
    assert not of_all
    assert refused_shares(bench, 1) == {
        "missing_label": (1 / 34, 34),
        "wrong_label": (3 / 34, 34),
        "from_the_future": (1 / 34, 34),
        "unknown_event": (2 / 34, 34),
    }
    of_newest = [measure_generation(bench.spark, bench.settings, bench.packed, dataset, 2, {0: 29}) for _ in range(2)]
    assert of_newest[0] == ["refused_labels of wrong_label is 0.6 over 5 rows, at most 0.5 is expected"]
    assert refused_shares(bench, 2)["wrong_label"] == (3 / 5, 5), "measured again, it is kept once"
    assert not measure_generation(bench.spark, bench.settings, bench.packed, dataset, 3, {0: 34})
    assert not refused_shares(bench, 3), "an empty week has nothing to measure"


def test_a_payload_is_known_again_however_its_decimals_are_written(
    spark: SparkSession, stack: Settings, tmp_path: Path
) -> None:
    bench = Bench(spark, stack, tmp_path)
    bench.write(
        "x: float\n    y: float\n    price: __import__('decimal').Decimal",
        'sources = (Csv("train.csv", label="above", event_id="id", split="train"), '
        'Csv("test.csv", label="above", event_id="id", split="test"))\n    features = Tensor("float32", (2,))',
    )

    def examples(first: int, count: int) -> str:
        rows = [f"example-{n},{n},{n + 1},{n}.50,no\n" for n in range(first, first + count)]
        return "id,x,y,price,above\n" + "".join(rows)

    bench.put(train__csv=examples(100, 40), test__csv=examples(200, 10))
    bench.ingest()
    archive, told = Archive(bench), {"occurred_at": SENT.isoformat()}
    xs = {f"same-{n}": 200 + n for n in range(4)} | {f"other-{n}": 300 + n for n in range(20)}
    bodies = {name: told | {"event_id": name, "x": x, "y": x + 1, "price": x + 0.5} for name, x in xs.items()}
    archive.events({name: to_json(body) for name, body in bodies.items()})
    archive.labels(dict.fromkeys(xs, "no"))
    assert prepared(bench)[0].left_out == {"payload_in_another_split": 4}


def test_what_is_withdrawn_after_a_data_set_was_pinned_counts_for_the_next_one(bench: Bench) -> None:
    archive, engine = Archive(bench), mysql.engine(bench.settings, "platform")
    archive.events({f"event-{n}": n for n in range(20)})
    archive.labels({f"event-{n}": "yes" for n in range(20)})

    def pinned_then_withdrawn(n: int) -> DataSet:
        dataset = data_set(bench.spark, bench.packed)
        choice = Choice(where=f"event_id = 'event-{n}'")
        assert withdraw(bench.spark, engine, bench.name, choice, who="ada", why="a test rig was live")
        return dataset

    before_any, before_another = pinned_then_withdrawn(3), pinned_then_withdrawn(5)
    assert before_any.id != before_another.id
    for dataset, expected in ((before_any, {*range(16)}), (before_another, {*range(16)} - {3})):
        shards = prepare(bench.spark, bench.settings, bench.packed, dataset)
        assert xs_of(bench, shards, "train").keys() - {*range(100, 140)} == expected

    store(
        mysql.engine(bench.settings, "views"),
        [of_prediction(prediction(f"event-{n}", n, application=bench.name)) for n in range(2)],
    )
    known = [Label(f"event-{n}", "yes", SENT + n * timedelta(minutes=1)) for n in range(2)]
    LiveAnswers(engine, bench.name).take(known, bench.packed.load().objective)
    wrong = Choice(topic="labels", where="event_id = 'event-0'")
    assert withdraw(bench.spark, engine, bench.name, wrong, who="ada", why="a test rig was live")
    with engine.connect() as connection:
        rows = connection.execute(select(LIVE_ANSWERS).where(LIVE_ANSWERS.c.application == bench.name))
        assert {row.event_id: row.label for row in rows} == {"event-0": None, "event-1": "yes"}


def test_a_withdrawal_of_what_never_counted_taints_no_version_that_is_trained_after_it(bench: Bench) -> None:
    archive, engine = Archive(bench), mysql.engine(bench.settings, "platform")
    archive.events({f"event-{n}": n for n in range(20)})
    archive.labels({f"event-{n}": "no" for n in range(20)} | {"event-7": "no"})
    archive.labels({"event-7": "yes"})
    before, shards = prepared(bench)
    assert before.labelled_events is not None
    superseded = Choice(topic="labels", where="event_id = 'event-7' AND label = 'no'")
    assert withdraw(bench.spark, engine, bench.name, superseded, who="ada", why="a broken labeller")
    assert TakenBack(bench.spark, bench.name).of(before), "the version that was trained meanwhile is looked at"

    after, same = prepared(bench)
    assert (after.id, same) == (before.id, shards)
    assert after.labelled_events is not None
    assert after.labelled_events.as_of > before.labelled_events.as_of
    assert TakenBack(bench.spark, bench.name).of(after) is None
    prepare(bench.spark, bench.settings, bench.packed, before)
    assert fetch_data_set(bench.store, bench.name, before.id) == after, "a run of before that goes on changes nothing"
    for table, snapshot in (("events", after.labelled_events.events_snapshot),
                            ("labels", after.labelled_events.labels_snapshot)):  # fmt: skip
        (tag,) = bench.spark.sql(f"SELECT * FROM lake.{bench.name}.{table}.refs WHERE type = 'TAG'").collect()
        assert tag.snapshot_id == snapshot, "upkeep leaves it until a card has it"
        assert tag.name == f"data-set-{after.id}-{snapshot}"


def shards_of(bench: Bench, card: Card) -> set[tuple[str, int, str]]:
    """Split, partition and hash of each shard that a version was trained on or judged by."""
    listed = MANIFEST.validate_json(bench.store.get(manifest_key(bench.name, card.dataset)))
    assert {each.key for each in listed} == {
        shard_key(bench.name, card.dataset, each.split, each.partition) for each in listed
    }
    return {(each.split, each.partition, each.sha256) for each in listed}


def test_the_archive_has_all_labels_where_kafka_ends_with_marks_or_with_what_has_expired(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic, archive = f"{bench.name}.labels", Archive(bench)
    create_topics(bench.settings.model_copy(update={"applications": (bench.name,), "kafka_partitions": 1}))
    producer = Producer(librdkafka_options(bench.settings) | {"transactional.id": topic})
    producer.init_transactions()

    def sent() -> dict[int, int]:
        producer.begin_transaction()
        producer.produce(topic, b'{"event_id": "a", "label": "yes"}', "a", partition=0)
        producer.commit_transaction()
        return end_offsets(bench.settings, topic)

    def archived(wanted: dict[int, int]) -> dict[int, int]:
        return archived_to(bench.spark, bench.settings, bench.name, "labels", wanted)

    first = sent()
    assert first == {0: 2}, "a label, and the mark"
    monkeypatch.setattr("batch_layer.archived._WITHIN_S", -1)
    with pytest.raises(NotReady, match="0 of 2 labels"):
        archived(first)
    archive.labels({"a": "yes"})
    assert archived(first) == first
    second = sent()
    with closing(KafkaAdminClient(**client_options(bench.settings))) as admin:
        admin.delete_records({TopicPartition(topic, 0): second[0]})
    assert archived(second) == second


def test_a_data_set_that_is_made_use_of_again_is_touched_so_that_upkeep_leaves_it(bench: Bench) -> None:
    dataset, _ = prepared(bench)

    def touched() -> datetime:
        return max(found.modified for found in bench.store.list(prepared_prefix(bench.name, dataset.id)))

    first = touched()
    assert eventually(lambda: prepared(bench)[0].id == dataset.id and touched() > first)


def test_a_second_run_learns_from_the_events_and_a_third_has_nothing_new(bench: Bench) -> None:
    def run(init_from: str | None = None) -> Card:
        quiet = PipelineConsole(Console(quiet=True))
        given: Any = {"promotes": False, "init_from": init_from}
        return run_pipeline(bench.spark, bench.settings, bench.packed, {}, quiet, **given)

    archive, first = Archive(bench), run()
    assert first.rows == {"train": {"examples": 40}, "test": {"examples": 10}}
    archive.events({f"old-{n}": 300 + n for n in range(30)})
    archive.events({"of-test": 205} | {f"event-{n}": n for n in range(20)})
    archive.labels({f"event-{n}": "yes" for n in range(10)} | {"of-test": "yes"})
    second = run()
    assert second.version > first.version
    assert shards_of(bench, second) & shards_of(bench, first) == shards_of(bench, first), "examples are not made again"
    told = fetch_data_set(bench.store, bench.name, second.dataset)
    assert told is not None
    assert told.copied == 2
    payloads = [bench.store.get(payload_key(bench.name, card.dataset, "test", 0)) for card in (first, second)]
    assert payloads[0] == payloads[1]
    assert second.rows == {"train": {"examples": 40, "events": 7}, "test": {"examples": 10}, "recent": {"events": 3}}
    assert second.trained_rows == 47
    assert None not in (second.events_snapshot, second.labels_snapshot, second.recent_from)
    archive.events({"late": 999})
    archive.labels({"nobody": "yes", "event-11": "maybe"})
    assert run().version == second.version, "events without labels and wrong labels are nothing to learn from"

    archive.labels({f"event-{n}": "yes" for n in range(10, 20)})
    third = run()
    assert third.rows["train"] == {"examples": 40, "events": 15}, "what was recent is learned from, of-test never"
    assert third.rows["recent"] == {"events": 5}
    assert third.parent is None
    archive.labels({f"old-{n}": "no" for n in range(30)})
    grown = data_set(bench.spark, bench.packed).labelled_events
    assert grown is not None
    assert (grown.events, grown.recent) == (51, 5), "a fifth would be eleven, of which the third has learned from six"
    assert grown.recent_from == third.recent_from
    rest = Choice(topic="labels", where="event_id LIKE 'old-%'")
    withdraw(bench.spark, mysql.engine(bench.settings, "platform"), bench.name, rest, who="ada", why="said enough")

    with pytest.raises(BadInput, match="has no champion"):
        run("champion")
    fourth = run(str(third.version))
    assert (fourth.parent, fourth.init_from, fourth.made_anew) == (third.version, f"{bench.name}/{third.version}", ())
    assert fourth.dataset == third.dataset
    assert run(third.name).version == fourth.version, "a finished run trains nothing, whatever it began from"
    child = fourth.model_copy(update={"version": fourth.version + 1, "init_from": fourth.name})
    registry.publish(mysql.engine(bench.settings, "platform"), bench.name, "another run", lambda version: child)
    found = lineage(bench.spark, bench.settings, bench.name, child.version)
    assert found.parents == [fourth.name, third.name]
    assert {(each.name, each.rows) for each in found.objects} == {("train.csv", 40), ("test.csv", 10)}
    assert {each.sha256 for each in found.objects} == {
        bench.store.digest(raw_key(bench.name, name)) for name in ("train.csv", "test.csv")
    }
    assert found.snapshots.keys() == {"examples", "events", "labels", "withdrawals"}, (
        "those of when it was trained last"
    )
    assert found.rows == third.rows
