"""A version is code, learned state and weights: each is served with its own, and bad rows harm no others anywhere."""

import dataclasses
import secrets
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pydantic_core import from_json, to_json
from pyspark.sql import SparkSession

from batch_layer.data_set import data_set
from batch_layer.gate import promote
from batch_layer.ingest import ingest, raw_key
from batch_layer.prepare import prepare
from batch_layer.publish import publish_run
from batch_layer.recompute import recompute
from batch_layer.same_rows import on_same_rows
from batch_layer.shard_format import payload_key, read_shard, shard_key
from batch_layer.training_run import TrainedRun
from deeplambda.adapters.lake import create_tables
from deeplambda.adapters.model_service import ModelClient, OtherFeatures
from deeplambda.adapters.s3 import ObjectStore
from deeplambda.application import payload_batch
from deeplambda.config import Settings
from deeplambda.errors import ConfigurationError, UnfitModel
from deeplambda.features import Features, Tensor, call
from deeplambda.learned import Vocabulary
from deeplambda.loading import PackedApplication, pack_application
from deeplambda.records import topics
from deeplambda.splits import TEST
from deeplambda.state.card import Card, fetch_card
from deeplambda.state.kept_rows import decode_payload
from deeplambda.state.versions import fetch_kept_rows, fetch_model, load_code
from serving_layer.hive_gateway.model_function import prediction_of
from speed_layer.stream.scoring import Scorer
from tests.integration.blobs import train_blobs
from tests.integration.own_model_service import OwnService

_SOURCE = """
import json
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pyarrow as pa
from deeplambda.application import Application, Event, Source
from deeplambda.learned import Vocabulary
from deeplambda.objective import Classification, accuracy


class ReviewWritten(Event):
    text: str
    stars: {stars}{more}


class Verbose(Classification):
    def decode(self, outputs):
        found = super().decode(outputs)
        return replace(found, values=["x" * 256 if value == "long" else value for value in found.values])


class Reviews(Application):
    name = "{name}"
    event = ReviewWritten
    sources = (Source(split="train", objects=("train",)), Source(split="test", objects=("test",)))
    objective = Verbose(classes=("good", "bad", "long"))
    metrics = {{"accuracy": accuracy}}
    hyperparameters = {{"epochs": 2, "batch_size": 16, "learning_rate": 0.05, "weight_decay": 0.0}}
    transform_limit_s = 1.0

    def examples(self, source, raw):
        for n, line in enumerate(raw[source.objects[0]].decode().splitlines()):
            yield {{"event_id": f"{{source.split}}-{{n}}"}} | json.loads(line)

    def fit(self, batches: Iterator[pa.RecordBatch]) -> Vocabulary:
        return Vocabulary.of((text for batch in batches for text in batch["text"].to_pylist()), size=40)

    def transform(self, batch, state):
        texts = batch["text"].to_pylist()
        if "raise" in texts:
            {when_raise}
        while "hang" in texts:
            pass
        stars = np.array(batch["stars"].to_pylist(), dtype=np.int64)
        tag = np.array([{{"long": 1, "beyond": 12_345}}.get(text, 0) for text in texts], dtype=np.int64)
        age = np.array([len(text) for text in texts], dtype=np.float32)
        words = state.padded(batch["text"], 6){reversed}
        return {{"words": words, "tag": tag, "age": age, "stars": stars + 12_345}}

    def build_model(self):
        import torch
        from torch import nn

        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                self.meaning = nn.Embedding(40, 4)
                self.back = nn.Linear(4, 40, bias=False)
                self.back.weight = self.meaning.weight  # tied
                self.register_buffer("table", torch.tensor([[0.0, 0, -1000], [0, 0, 1000]]))
                self.place = nn.Parameter(torch.randn(6, 1))

            def forward(self, words, tag, age, stars):
                hidden = (self.meaning(words) * self.place).sum(dim=1)
                odd = (stars % 2).to(hidden.dtype).sum(dim=1, keepdim=True)
                return self.back(hidden)[:, 2:5] + odd + self.table[tag] + torch.log(age).unsqueeze(1)

        return Model()
"""
_V1 = {"when_raise": 'raise KeyError("no such word")', "reversed": "", "stars": "list[int]", "more": ""}
_V2 = _V1 | {"when_raise": "pass", "reversed": "[:, ::-1]"}
_OPTIONAL_FIELD_MORE = _V1 | {"more": "\n    country: str | None = None"}
_OTHER_TYPE = _V1 | {"stars": "list[str]"}
GOOD_WORDS, BAD_WORDS = ["lovely", "fine", "great"], ["awful", "poor", "broken"]


@dataclass(frozen=True, kw_only=True)
class Loop:
    """The application with its first version trained on the lake, promoted and served."""

    service: OwnService
    packed: PackedApplication
    trained: TrainedRun
    version: int
    shards: list[Features]

    @property
    def settings(self) -> Settings:
        return self.service.settings

    def write(self, variant: dict[str, str]) -> PackedApplication:
        """Other code in the application's folder."""
        folder = self.settings.applications_dir / self.service.name
        (folder / "application.py").write_text(_SOURCE.format(name=self.service.name, **variant))
        return pack_application(self.service.name, self.settings)

    def expected(self, version: int, texts: list[str]) -> list[str]:
        """What a version's own code, state and weights say."""
        store = ObjectStore(self.settings)
        card = fetch_card(store, self.service.name, version)
        code = load_code(store, self.settings, card)
        events = [code.application.event.model_validate_json(event(text)[1]) for text in texts]
        features = code.featurizer.features(payload_batch(code.application.event, events))
        model = fetch_model(store, code.application, card)
        with torch.inference_mode():
            outputs = call(model, {name: torch.from_numpy(array) for name, array in features.items()})
        return list(code.application.objective.decode(outputs.numpy()).values)


def texts_of(count: int, seed: int) -> list[tuple[str, str]]:
    randomness = np.random.default_rng(seed)
    labels = [("good", GOOD_WORDS), ("bad", BAD_WORDS)]
    return [(" ".join(randomness.choice(words, 4)), label) for label, words in (labels[n % 2] for n in range(count))]


def event(text: str, event_id: str = "e", stars: list[int] | None = None) -> tuple[bytes, bytes]:
    fields = {"event_id": event_id, "occurred_at": "2026-01-02T03:04:05Z", "text": text, "stars": stars or [1, 4]}
    return event_id.encode(), to_json(fields)


def rows(records: list[tuple[bytes | None, bytes]]) -> list[dict[str, Any]]:
    """As Spark's Kafka source gives them."""
    at = datetime(2026, 1, 2, 3, 4, 6, tzinfo=UTC)
    return [
        {"key": key, "value": value, "topic": "t", "partition": 0, "offset": n, "timestamp": at}
        for n, (key, value) in enumerate(records)
    ]


@pytest.fixture(scope="module")
def loop(stack: Settings, spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loop]:
    service = OwnService(stack, tmp_path_factory.mktemp("applications"))
    loop = Loop(service=service, packed=None, trained=None, version=1, shards=[])  # type: ignore[arg-type]
    packed = loop.write(_V1)
    store = ObjectStore(service.settings)
    for split, count in (("train", 60), ("test", 20)):
        lines = [to_json({"text": text, "stars": [n, 4], "label": label}) for n, (text, label) in
                 enumerate(texts_of(count, seed=count))]  # fmt: skip
        if split == "train":
            lines.append(to_json({"text": "raise", "stars": [1, 4], "label": "good"}))
        store.put(raw_key(service.name, split), b"\n".join(lines))
    create_tables(spark, packed.load())
    ingest(spark, service.settings, packed)
    prepared = data_set(spark, packed)
    announced = prepare(spark, service.settings, packed, prepared)
    assert {(each.split, each.rows, each.refused) for each in announced} == {("train", 60, 1), ("test", 20, 0)}
    assert "KeyError: 'no such word' (application.py, line" in str(announced[0].first_refusal)
    trained = train_blobs(service.settings, packed, prepared.id)
    version = publish_run(service.settings, packed, trained)
    promote(service.settings, packed, version)
    shards = [read_shard(store.get(each.key))[0] for each in announced]
    with service.running():
        assert service.serves(version, timeout_s=120), service.log.read_text()
        yield Loop(service=service, packed=packed, trained=trained, version=version, shards=shards)


def test_ids_and_learned_words_reach_shards_card_and_kept_rows(loop: Loop) -> None:
    store = ObjectStore(loop.settings)
    card = fetch_card(store, loop.service.name, loop.version)
    tensors = {"words": Tensor("int64", (6,)), "tag": Tensor("int64"), "age": Tensor(), "stars": Tensor("int64", (2,))}
    assert card.features == tensors
    code, kept = load_code(store, loop.settings, card), fetch_kept_rows(store, card)
    assert kept is not None
    assert kept.payload.num_rows == 20
    kept.check_features(code.featurizer.features, "it")
    train = next(shard for shard in loop.shards if len(shard["words"]) == 60)
    assert sorted(train["stars"][:, 0]) == [12_345 + n for n in range(60)], "to the last digit"
    assert card.state_format == "json"
    words = Vocabulary.model_validate_json(store.get(f"{card.application}/models/{card.version}/state")).words
    assert {*GOOD_WORDS, *BAD_WORDS} <= set(words)
    assert set(np.unique(train["words"])) <= {0, *range(2, len(words) + 2)}, "no word of the training rows is unknown"


FAILING = {
    "raise": "KeyError: 'no such word' (application.py, line",
    "hang": "took longer than 1 s",
    "beyond": "the model raised IndexError",
    "": "not finite",
    "long": "256 characters",
}


def test_rest_names_the_instance_or_row_to_blame(loop: Loop) -> None:
    good = {"text": "lovely fine great", "stars": [1, 4]}
    for text, named in FAILING.items():
        body = to_json({"instances": [good, {"text": text, "stars": [1, 4]}, good]})
        reply = loop.service.request(
            "POST", loop.service.predict_path, body=body, headers={"Content-Type": "application/json"}
        )
        assert reply.status == 422, (text, reply.data)
        assert named in reply.json()["detail"]
        assert reply.json()["detail"].startswith(("instance 1: ", "row 1: "))
    for stars in ([1, 2, 3], [2**70, 1]):
        body = to_json({"instances": [good, {"text": "fine", "stars": stars}]})
        reply = loop.service.request(
            "POST", loop.service.predict_path, body=body, headers={"Content-Type": "application/json"}
        )
        assert (reply.status, reply.json()["detail"].startswith("instance 1: ")) == (422, True), reply.data


def accuracies(settings: Settings, candidate: Card, other: Card) -> tuple[float, float]:
    """Of both, measured on the candidate's test rows."""
    same = on_same_rows(settings, candidate, other)
    assert same is not None
    ours, theirs = (float((each.argmax(axis=1) == same.labels_N).mean()) for each in (same.ours_N, same.theirs_N))
    return ours, theirs


def test_stream_sql_rest_and_recomputation_score_the_same_rows_alike(loop: Loop, spark: SparkSession) -> None:
    sound = [text for text, _ in texts_of(10, seed=5)]
    records: list[tuple[bytes | None, bytes]] = [event(text, f"e{n}") for n, text in enumerate(sound)]
    records += [event(text, f"bad-{n}") for n, text in enumerate(FAILING)]
    records += [
        event("fine", "ragged", stars=[1, 2, 3]),
        event("fine", "huge", stars=[2**70, 1]),
        (b"\xff\xfe", event("fine", "not utf-8")[1]),
        (None, event("fine", "no key")[1]),
    ]
    expected = loop.expected(loop.version, sound)
    out = Scorer(loop.settings, loop.service.name).records(rows(records))
    assert len(out) == len(records), "each record is answered once"
    predictions = [from_json(value) for topic, _, value in out if topic == topics.predictions(loop.service.name)]
    letters = [from_json(value) for topic, _, value in out if topic == topics.dead_letters(loop.service.name)]
    assert {each["event_id"]: each["prediction"] for each in predictions} == {
        f"e{n}": label for n, label in enumerate(expected)
    }
    assert {(each["model_version"], each["code_version"]) for each in predictions} == {
        (loop.version, loop.packed.code_version)
    }
    reasons = {from_json(b64decode(each["value_base64"]))["event_id"]: each for each in letters}
    assert {event_id: each["reason"] for event_id, each in reasons.items()} == {
        "bad-0": "transform_failed",
        "bad-1": "transform_failed",
        "bad-2": "model_failed",
        "bad-3": "model_failed",
        "bad-4": "model_failed",
        "ragged": "transform_failed",
        "huge": "bad_value",
        "not utf-8": "key_mismatch",
        "no key": "missing_key",
    }
    for n, named in enumerate(FAILING.values()):
        assert named in reasons[f"bad-{n}"]["detail"]

    texts = [*sound, *FAILING]
    in_sql = prediction_of(loop.settings, loop.service.name)(
        pa.array(texts), pa.array([[1, 4]] * len(texts), pa.list_(pa.int64()))
    )
    assert in_sql.to_pylist() == [*expected, *[None] * len(FAILING)]

    instances = [{"text": text, "stars": [1, 4]} for text in sound]
    reply = loop.service.request("POST", loop.service.predict_path, json={"instances": instances})
    assert [row["prediction"] for row in reply.json()["predictions"]] == expected

    archive = f"lake.{loop.service.name}.events"
    archived = spark.createDataFrame(
        [(key, value, 0, n, datetime.now(UTC), datetime.now(UTC)) for n, (key, value) in enumerate(records)],
        "event_id BINARY, value BINARY, kafka_partition INT, kafka_offset BIGINT, kafka_timestamp TIMESTAMP, "
        "archived_at TIMESTAMP",
    )
    archived = archived.withColumn("event_id", archived.event_id.cast("string"))
    archived.select(spark.table(archive).columns).writeTo(archive).append()
    published = recompute(spark, loop.settings, loop.packed)
    assert (published.version, published.rows) == (loop.version, len(sound))
    view = spark.table(f"lake.{loop.service.name}.predictions").collect()
    assert {row.event_id: row.prediction for row in view} == {f"e{n}": label for n, label in enumerate(expected)}


def test_each_version_is_served_with_its_own_code(loop: Loop) -> None:
    service, texts = loop.service, [text for text, _ in texts_of(8, seed=9)]
    records = [event(text, f"e{n}") for n, text in enumerate(texts)]
    old = Scorer(loop.settings, service.name)
    old.records(rows(records))
    newer = loop.write(_V2)
    trained = dataclasses.replace(loop.trained, run=secrets.token_hex(8))
    second = publish_run(loop.settings, newer, trained)
    promote(loop.settings, newer, second, force=True)
    assert service.serves(second, timeout_s=120), service.log.read_text()

    store = ObjectStore(loop.settings)
    first_code = load_code(store, loop.settings, fetch_card(store, service.name, loop.version)).featurizer
    assert first_code.code_version == loop.packed.code_version != newer.code_version
    application = first_code.application
    payload = payload_batch(application.event, [application.event.model_validate_json(value) for _, value in records])

    cards = [fetch_card(store, service.name, version) for version in (loop.version, second)]
    second_code = load_code(store, loop.settings, cards[1])
    test_rows = decode_payload(store.get(payload_key(service.name, cards[0].dataset, TEST, 0)))
    test_labels = read_shard(store.get(shard_key(service.name, cards[0].dataset, TEST, 0)))[1]
    features = {n: torch.from_numpy(a) for n, a in second_code.featurizer.features(test_rows).items()}
    with torch.inference_mode():
        outputs = call(fetch_model(store, second_code.application, cards[1]), features).numpy()
    judged = accuracies(loop.settings, *cards)
    assert judged == (cards[0].metrics["accuracy"], (outputs.argmax(axis=1) == test_labels).mean())

    with pytest.raises(OtherFeatures) as refused:
        ModelClient(loop.settings, service.name).predict(first_code.features(payload), first_code.id)
    assert refused.value.model_version == second

    def scored(scorer: Scorer) -> list[tuple[Any, ...]]:
        told = [from_json(value) for _, _, value in scorer.records(rows(records))]
        return [(each["model_version"], each["code_version"], each["prediction"]) for each in told]

    of_second = [(second, newer.code_version, label) for label in loop.expected(second, texts)]
    of_first = [(loop.version, loop.packed.code_version, label) for label in loop.expected(loop.version, texts)]
    # The old code refuses this one; that it is old code is found out although nothing goes to the model.
    refused_by_old = Scorer(loop.settings, service.name)
    refused_by_old._code.load(loop.version)
    ((topic, _, _),) = refused_by_old.records(rows([event("raise", "r")]))
    assert topic == topics.predictions(service.name)
    assert scored(old) == of_second

    service.roll_back()
    assert service.serves(loop.version, timeout_s=120)
    assert scored(old) == of_first
    with pytest.raises(UnfitModel, match="no earlier champion"):
        service.roll_back()
    assert service.version() == loop.version


def test_a_schema_that_grew_serves_old_events_and_one_that_broke_is_refused_by_field(
    loop: Loop, spark: SparkSession
) -> None:
    """The module's last: the service serves the new version from here on."""
    archived = spark.table(f"lake.{loop.service.name}.events").count()
    grown = loop.write(_OPTIONAL_FIELD_MORE)
    create_tables(spark, grown.load())
    store, key = ObjectStore(loop.settings), raw_key(loop.service.name, "train")
    row = {"text": "lovely", "stars": [0, 4], "label": "good", "country": "CH"}
    store.put(key, store.get(key) + b"\n" + to_json(row))
    ingest(spark, loop.settings, grown)
    countries = spark.table(f"lake.{loop.service.name}.examples").groupBy("country").count().collect()
    assert {row["country"]: row["count"] for row in countries} == {None: 81, "CH": 1}
    dataset = data_set(spark, grown)
    prepare(spark, loop.settings, grown, dataset)
    version = publish_run(loop.settings, grown, train_blobs(loop.settings, grown, dataset.id))
    cards = [fetch_card(store, loop.service.name, each) for each in (version, loop.version)]
    assert cards[0].featurizer_id != cards[1].featurizer_id
    assert accuracies(loop.settings, *cards) == tuple(card.metrics["accuracy"] for card in cards)
    promoted = promote(loop.settings, grown, version)
    assert promoted is not None
    assert promoted.verdict is not None
    (accuracy, calibration) = promoted.verdict.comparisons
    assert (accuracy.metric, accuracy.test, accuracy.against) == ("accuracy", "McNemar", loop.version)
    assert (accuracy.candidate, accuracy.other) == tuple(card.metrics["accuracy"] for card in cards)
    assert calibration.metric == "calibration_error"
    assert loop.service.serves(version, timeout_s=120), loop.service.log.read_text()
    published = recompute(spark, loop.settings, grown)
    assert (published.version, published.rows + published.refused) == (version, archived)
    assert published.rows == 10, "what was archived before the field was there is scored as before"

    broken = loop.write(_OTHER_TYPE)
    with pytest.raises(ConfigurationError, match="field 'stars"):
        create_tables(spark, broken.load())
