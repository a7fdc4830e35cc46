"""Shadow and canary on the real stack: what a candidate does beside the champion, and what its labels decide."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from pydantic_core import from_json

from batch_layer.experiment_answers import figures
from batch_layer.experiment_commands import begin
from batch_layer.experiments import CANARY_FAILURES, _Followed, follow
from batch_layer.gate import promote
from batch_layer.live_answers import Label
from batch_layer.publish import publish_run
from batch_layer.shadow_step import shadowed
from deeplambda.adapters import mysql
from deeplambda.adapters.kafka import Publisher, consumer, create_topics
from deeplambda.clock import now
from deeplambda.config import Settings
from deeplambda.errors import Conflict, UnfitModel
from deeplambda.loading import PackedApplication, pack_application
from deeplambda.records import topics
from deeplambda.records.experiments import CANARY_HEADER, Canary, ShadowShed
from deeplambda.records.lifecycle import ChallengerFailed
from deeplambda.records.verdict import Verdict
from deeplambda.service.loops import LoopStatus
from deeplambda.state import experiment_store, generation_store, registry
from deeplambda.state.experiment_store import Experiment
from speed_layer.stream import failures
from speed_layer.stream.scoring import Scorer
from tests.integration.blobs import CENTRES, blobs, lifecycle, prepared_data_set, train_blobs
from tests.integration.own_model_service import OwnService
from tests.integration.test_views import prediction
from tests.traffic import eventually

BAD, GOOD, BROKEN, AS_BROKEN = 1, 2, 3, 4
"""Versions: one that knows little, one that is right of nearly all points, and two that have no answer to some."""
_NO_ANSWER, _SLOW = 200.0, 2_000.0
"""In a point's last place: what the broken version's outputs are not finite for, and what it takes its time for."""
_BROKEN = """
        class Broken(nn.Sequential):
            def forward(self, points):
                return torch.where(points[:, 3:] > 100, torch.nan, super().forward(points))

        return Broken(nn.Linear(4, hidden), nn.ReLU(), nn.Dropout(0.1), nn.Linear(hidden, 3))
"""
_SLOW_TRANSFORM = """def transform(self, batch):
        if any(point[3] > 1_000 for point in batch["point"].to_pylist()):
            time.sleep(4)
"""


BEYOND = 10**12
"""An offset that no topic of the tests' reaches."""


class Live:
    """An application of the tests' own with its model service, its stream, and what follows its experiments."""

    def __init__(self, service: OwnService, packed: PackedApplication) -> None:
        self.service, self.packed, self.settings, self.name = service, packed, service.settings, packed.name
        self.publisher = Publisher(self.settings)
        self.scorer = Scorer(self.settings, self.name)
        self.reader = consumer(self.settings, topics.events(self.name))
        self._sent = 0

    def send(
        self, rows: int, *, labels: bool = True, last: float | Sequence[float] | None = None
    ) -> list[dict[str, Any]]:
        """Have events scored as the stream does it; their predictions. labels: whether those follow at once. last: what
        stands in each point's last place."""
        random = np.random.default_rng(self._sent)
        kinds = random.integers(0, 3, rows)
        points = CENTRES[kinds] + random.normal(0, 0.5, (rows, 4))
        if last is not None:
            points[:, 3] = last
        ids = [f"event-{self._sent + n}" for n in range(rows)]
        self._sent += rows
        for event_id, point in zip(ids, points.tolist(), strict=True):
            event = {"event_id": event_id, "occurred_at": now(), "point": point}
            self.publisher.send(topics.events(self.name), event_id, event)
        self.publisher.flush()
        taken: list[Any] = []
        while len(taken) < rows:
            taken += [record for batch in self.reader.poll(1_000).values() for record in batch]
        made = self.scorer.records([_row(record) for record in taken])
        for topic, key, value in made:
            self.publisher.send_record(topic, key, value)
        if labels:
            for event_id, kind in zip(ids, kinds, strict=True):
                self.publisher.send(topics.labels(self.name), event_id, {"event_id": event_id, "label": "abc"[kind]})
        self.publisher.flush()
        return [from_json(value) for topic, _, value in made if topic == topics.predictions(self.name)]

    def begin(self, version: int, kind: experiment_store.Kind, **options: Any) -> Experiment:
        """As the command does."""
        asked: dict[str, Any] = {"share": 1.0, "until_decided": False, "force": True, "who": "a test"} | options
        return begin(self.settings, self.packed, version, kind, **asked)

    def experiment(self) -> Experiment:
        """The newest one as MySQL knows it."""
        with mysql.engine(self.settings, "platform").connect() as connection:
            found = experiment_store.newest(connection, self.name)
        assert found is not None
        return found

    def until(self, wanted: Callable[[Experiment], bool], timeout_s: float = 120) -> Experiment:
        """The newest one, once it is as wanted."""
        assert eventually(lambda: wanted(self.experiment()), timeout_s), self.experiment()
        return self.experiment()

    def predict(self, *instances: dict[str, Any]) -> list[int]:
        """The versions that answer over REST."""
        reply = self.service.request("POST", self.service.predict_path, json={"instances": list(instances)})
        assert reply.status == 200, reply.data
        answer = reply.json()
        return [each.get("model_version", answer["model_version"]) for each in answer["predictions"]]

    def asks(self, version: int) -> bool:
        """Whether the model service comes to ask a canary's candidate; the stream knows it then as well."""
        path = f"/v2/models/{self.name}"

        def told() -> bool:
            canary = Canary.of_header(self.service.request("GET", path).headers.get(CANARY_HEADER))
            return canary is not None and canary.version == version

        assert eventually(told, 60), self.service.log.read_text()
        self.send(1, labels=False)
        return True

    def champion(self) -> int | None:
        with mysql.engine(self.settings, "platform").connect() as connection:
            card = registry.champion(connection, self.name)
        return card.version if card else None

    def stop(self) -> None:
        with mysql.engine(self.settings, "platform").begin() as connection:
            if (running := experiment_store.running(connection, self.name)) is not None:
                experiment_store.end(connection, running, "stopped", "the test is over")
        self.service.announce()

    def told(self, kind: str) -> list[dict[str, Any]]:
        """Lifecycle records of the application."""
        self.service.announce()
        return lifecycle(self.settings, lambda fact: (fact["type"], fact["application"]) == (kind, self.name))


def _row(record: Any) -> dict[str, Any]:
    at = now()
    return {"key": record.key, "value": record.value, "topic": record.topic, "partition": record.partition,
            "offset": record.offset, "timestamp": at}  # fmt: skip


@pytest.fixture(scope="module")
def live(stack: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("applications")
    name = blobs(stack, folder).name
    service = OwnService(stack, folder, name=name)
    packed = pack_application(name, service.settings)
    create_topics(service.settings)
    dataset = prepared_data_set(service.settings, name)
    for epochs, rate in ((1, 1e-5), (3, 0.02)):
        trained = train_blobs(service.settings, packed, dataset, epochs=epochs, learning_rate=rate)
        publish_run(service.settings, packed, trained)
    code = folder / name / "application.py"
    known = code.read_text()
    start = known.index("        return nn.Sequential")
    written = f"import time\nimport torch\n{known[:start]}{_BROKEN}"
    code.write_text(written.replace("def transform(self, batch):\n", _SLOW_TRANSFORM))
    broken = pack_application(name, service.settings)
    for epochs in (3, 1):
        publish_run(service.settings, broken, train_blobs(service.settings, broken, dataset, epochs=epochs))
    code.write_text(known)
    promote(service.settings, packed, BAD, force=True)
    stop = threading.Event()
    following = threading.Thread(target=follow, args=(service.settings, LoopStatus(), stop))
    following.start()
    with service.running():
        assert service.serves(BAD, timeout_s=120), service.log.read_text()
        yield Live(service, packed)
    stop.set()
    following.join()


@pytest.fixture(autouse=True)
def alone(live: Live) -> Iterator[None]:
    """The version that knows little serves, and no experiment runs, when a test begins."""
    if live.champion() != BAD:
        promote(live.settings, live.packed, BAD, force=True)
        assert live.service.serves(BAD)
    yield
    live.stop()


def test_a_shadow_answers_the_same_events_and_nobody_gets_its_answers(live: Live) -> None:
    begun = live.begin(GOOD, "shadow")
    made = live.send(200, labels=False)
    found = live.until(lambda each: each.answered >= 200)
    assert {each["model_version"] for each in made} == {BAD}
    assert found.agreed in range(1, 200), "the two versions differ"
    with closing(consumer(live.settings, topics.shadow_predictions(live.name))) as reader:
        pairs: dict[str, dict[str, Any]] = {}
        while len(pairs) < 200:
            for batch in reader.poll(1_000).values():
                pairs |= {each["event_id"]: each for each in (from_json(record.value) for record in batch)}
    answers = {each["event_id"]: each["prediction"] for each in made}
    assert {key: each["champion"]["prediction"] for key, each in pairs.items()} == answers
    assert {each["candidate"]["version"] for each in pairs.values()} == {GOOD}
    assert {each["experiment"] for each in pairs.values()} == {begun.number}


def test_a_better_version_is_promoted_once_its_labels_say_so(live: Live) -> None:
    begun = live.begin(GOOD, "shadow", until_decided=True, why="it knows more")
    live.send(300)
    assert live.until(lambda each: each.state != "running").state == "promoted"
    assert live.champion() == GOOD
    (promoted,) = [fact for fact in live.told("ModelPromoted") if fact["who"] == f"shadow {begun.number}"]
    (compared,) = [each for each in promoted["verdict"]["comparisons"] if each["split"] == "live"]
    assert (compared["against"], compared["test"]) == (BAD, "betting")
    assert compared["low"] > -0.005, "the application's margin"
    (ended,) = [fact for fact in live.told("ExperimentEnded") if fact["number"] == begun.number]
    assert (ended["state"], ended["who"]) == ("promoted", f"shadow {begun.number}")
    assert live.service.serves(GOOD)


def test_a_worse_version_is_rejected_and_the_champion_stays(live: Live) -> None:
    promote(live.settings, live.packed, GOOD, force=True)
    assert live.service.serves(GOOD)
    begun = live.begin(BAD, "canary", share=0.5, until_decided=True)
    assert live.asks(BAD)
    live.send(400)
    ended = live.until(lambda each: each.state != "running")
    assert (ended.state, live.champion()) == ("rejected", GOOD)
    (rejected,) = [fact for fact in live.told("ModelRejected") if fact["who"] == f"canary {begun.number}"]
    assert "worse by more than the margin" in rejected["reason"]
    assert ended.comparison is not None
    assert ended.comparison.high is not None
    assert ended.comparison.high < 0


def test_a_canary_answers_its_share_by_event_id_alike_in_the_stream_and_over_rest(live: Live) -> None:
    begun = live.begin(GOOD, "canary", share=0.3)
    assert live.asks(GOOD)
    made = live.send(300, labels=False)
    canary = Canary(experiment=begun.number, version=GOOD, share=0.3)
    expected = {each["event_id"]: GOOD if canary.takes(each["event_id"]) else BAD for each in made}
    assert {each["event_id"]: each["model_version"] for each in made} == expected
    assert 0.2 < list(expected.values()).count(GOOD) / len(made) < 0.4
    ids = list(expected)[:50]
    point = [0.0, 2.0, 0.0, 0.0]
    assert live.predict(*({"event_id": each, "point": point} for each in ids)) == [expected[each] for each in ids]
    assert live.predict(*[{"point": point}] * 20) == [BAD] * 20, "without an id it is the champion's"


def test_a_canary_that_has_no_answers_costs_no_event_its_own_and_ends(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failures, "RESTS_S", 0.0)
    live.begin(BROKEN, "canary")
    assert live.asks(BROKEN)
    assert live.predict({"event_id": "quick", "point": [0.0, 2.0, 0.0, 0.0]}) == [BROKEN]
    for _ in range(CANARY_FAILURES):
        made = live.send(20, labels=False, last=_NO_ANSWER)
        assert [each["model_version"] for each in made] == [BAD] * 20
    ended = live.until(lambda each: each.state != "running")
    assert ended.state == "failed"
    assert "not finite" in str(ended.reason)
    assert live.champion() == BAD


def test_what_the_champion_has_no_answer_to_either_is_no_failure_of_a_canary(live: Live) -> None:
    promote(live.settings, live.packed, BROKEN, force=True)
    assert live.service.serves(BROKEN)
    begun = live.begin(AS_BROKEN, "canary")
    assert live.asks(AS_BROKEN)
    made = live.send(20, labels=False, last=[_NO_ANSWER] + [0.0] * 19)
    assert [each["model_version"] for each in made] == [AS_BROKEN] * 19, "one event costs the others nothing"
    live.send(1, labels=False, last=_NO_ANSWER)
    assert [fact for fact in live.told("ChallengerFailed") if fact["number"] == begun.number] == []


def test_a_failure_that_is_told_again_is_counted_once(live: Live) -> None:
    begun = live.begin(GOOD, "canary")
    for event_id in ("one", "one", "other"):
        failed = ChallengerFailed(
            application=live.name,
            number=begun.number,
            version=GOOD,
            event_id=event_id,
            part="stream",
            reason=f"of {event_id}",
        )
        live.publisher.send(topics.LIFECYCLE, live.name, failed)
    live.publisher.flush()
    found = live.until(lambda each: each.failure == "stream: of other")
    assert (found.failed, found.state) == (2, "running")


def test_a_canary_that_is_slow_costs_a_request_a_second_and_not_its_answer(live: Live) -> None:
    live.begin(BROKEN, "canary")
    assert live.asks(BROKEN)
    assert live.predict({"event_id": "slow", "point": [0.0, 2.0, 0.0, _SLOW]}) == [BAD]
    found = live.until(lambda each: each.failed == 1)
    assert "later than the request asks" in str(found.failure)


def test_a_shadow_that_has_no_answers_is_counted_with_its_reason(live: Live) -> None:
    live.begin(BROKEN, "shadow")
    made = live.send(20, labels=False, last=_NO_ANSWER)
    assert [each["model_version"] for each in made] == [BAD] * 20
    found = live.until(lambda each: each.failed == 20)
    assert (found.state, found.answered) == ("running", 0)
    assert found.failure == "the model's outputs are not finite"


def test_a_shadow_sheds_what_its_share_of_a_core_is_too_small_for(live: Live) -> None:
    live.begin(GOOD, "shadow", share=0.1)
    live.send(50, labels=False)
    live.until(lambda each: each.answered >= 50)
    live.send(1_600, labels=False)
    found = live.until(lambda each: each.answered + each.shed >= 1_650)
    assert found.shed > 0
    assert found.answered + found.shed == 1_650


def test_what_a_shadow_has_shed_counts_once_however_often_its_record_is_taken(live: Live) -> None:
    begun = live.begin(GOOD, "shadow")
    shed = ShadowShed(application=live.name, experiment=begun.number, rows=7)
    record = SimpleNamespace(value=shed.model_dump_json().encode(), partition=0, offset=BEYOND)
    for _ in range(2):  # the first was killed before it committed
        with closing(_Followed(live.settings, live.experiment())) as followed:
            followed._answers([record])
    assert live.experiment().shed == 7


def test_a_canary_is_compared_with_answers_since_its_own_first_one(live: Live) -> None:
    begun = live.begin(GOOD, "canary", share=0.1)
    canary, wider = (Canary(experiment=begun.number, version=GOOD, share=share) for share in (0.1, 0.5))
    ids = [each for each in map("made-{}".format, range(200)) if wider.takes(each)]
    controls = [each for each in ids if not canary.takes(each)]
    candidate = next(each for each in ids if canary.takes(each))

    def record(event_id: str, version: int, second: int) -> SimpleNamespace:
        at = begun.started_at + timedelta(seconds=second)
        times = dict.fromkeys(("occurred_at", "received_at", "predicted_at"), at)
        made = prediction(event_id, BEYOND, application=live.name, model_version=version, prediction="a", **times)
        return SimpleNamespace(value=made.model_dump_json().encode())

    with closing(_Followed(live.settings, begun)) as followed:
        followed._answers([record(each, BAD, 1) for each in controls[:10]])
        followed._label([Label(each, "b", begun.started_at) for each in controls[:10]])
        with mysql.engine(live.settings, "platform").connect() as connection:
            assert figures(connection, begun, followed._criterion)["labelled"] == 0
        followed._answers([record(controls[10], BAD, 4), record(candidate, GOOD, 3)])
        followed._label([Label(each, "a", begun.started_at) for each in (controls[10], candidate)])
        with mysql.engine(live.settings, "platform").connect() as connection:
            found = figures(connection, begun, followed._criterion)
    assert (found["answered"], found["labelled"]) == (1, 2)
    assert (found["comparison"].candidate, found["comparison"].other) == (1, 1)


def test_an_experiment_goes_on_when_what_works_on_it_is_killed(live: Live) -> None:
    begun = live.begin(GOOD, "canary", share=0.3)
    assert live.asks(GOOD)
    live.service.kill()
    live.service.start()
    assert live.service.serves(BAD, timeout_s=120)
    assert live.asks(GOOD), "it knows the canary from Kafka"
    canary = Canary(experiment=begun.number, version=GOOD, share=0.3)
    made = live.send(100, labels=False)
    assert all((each["model_version"] == GOOD) == canary.takes(each["event_id"]) for each in made)
    live.stop()
    live.begin(GOOD, "shadow")
    live.send(50)
    live.until(lambda each: each.answered >= 50)
    (shadow,) = [each for each in psutil.Process().children() if "batch_layer.shadow" in each.cmdline()]
    shadow.kill()
    live.send(50)
    found = live.until(lambda each: each.labelled >= 100)
    assert (found.answered, found.labelled, found.shed) == (100, 100, 0)


@pytest.mark.parametrize(("serving", "trained"), [(BAD, GOOD), (GOOD, BAD)])
def test_a_generation_s_version_is_a_shadow_before_it_is_promoted(live: Live, serving: int, trained: int) -> None:
    if live.champion() != serving:
        promote(live.settings, live.packed, serving, force=True)
        assert live.service.serves(serving)
    platform = mysql.engine(live.settings, "platform")
    settings = live.settings.model_copy(update={"generation_shadow_labels": 1_000})
    generation = generation_store.begin(platform, live.name, "person", "a test", {}, 0)
    step = partial(shadowed, settings, platform, live.packed, generation, Verdict(version=trained))
    with ThreadPoolExecutor() as pool:
        killed, taken_up = pool.submit(step), None
        begun = live.until(lambda each: each.who == f"generation {generation.number}")
        taken_up = pool.submit(step)
        live.send(300)
        if trained == GOOD:
            assert taken_up.result().comparisons == killed.result().comparisons
        for each in (killed, taken_up) if trained == BAD else ():
            with pytest.raises(UnfitModel, match="worse by more than the margin"):
                each.result()
    assert live.experiment().number == begun.number, "the second process begins none of its own"
    assert live.champion() == GOOD


def test_one_experiment_runs_at_a_time_and_another_champion_ends_it(live: Live) -> None:
    live.begin(BROKEN, "shadow")
    with pytest.raises(Conflict, match="runs already, with version 3"):
        live.begin(GOOD, "canary")
    promote(live.settings, live.packed, GOOD, force=True, who="ada")
    ended = live.experiment()
    assert (ended.state, ended.ended_by) == ("superseded", "ada")
    # the outbox says a thing once or more often
    told = {fact["reason"] for fact in live.told("ExperimentEnded") if fact["number"] == ended.number}
    assert told == {"version 2 was made the champion in place of 1 meanwhile"}
