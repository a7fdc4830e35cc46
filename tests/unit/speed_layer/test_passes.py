"""Requests in flight share passes: none waits when idle, none harms another, none waits longer than it may."""

import json
import signal
import threading
import time
from base64 import b64encode
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from deeplambda.errors import DeadlinePassed, DeviceFailed, InvalidEvent, NotReady, Overloaded, TooManyRefused
from deeplambda.features import Features
from deeplambda.records.decoding import decode_event
from deeplambda.records.featurizer import Featurizer, Isolated
from deeplambda.service import load_shedding
from examples.digits.application import DigitDrawn, Digits
from speed_layer.model_service.champions import Champion
from speed_layer.model_service.fast_path import FastPath
from speed_layer.model_service.jobs import Job, Scored
from speed_layer.model_service.passes import FEW_PASSES, WAITING_PASSES, Passes
from speed_layer.model_service.turns import Turns
from tests.traffic import eventually
from tests.unit.speed_layer.test_service_metrics import CARD

BEST, WAIT_S = 8, 60.0


class Model:
    """Its output is its row's first pixel; it fails on 1, gives NaN on 2, and waits at the gate while that is shut."""

    def __init__(self) -> None:
        self.passes: list[list[float]] = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, rows: Mapping[str, torch.Tensor]) -> torch.Tensor:
        first_N = rows["features"][:, 0, 0, 0]
        self.passes.append(first_N.tolist())
        assert self.gate.wait(WAIT_S)
        if (first_N == 1).any():
            raise IndexError("index out of range")
        if (first_N == -1).any():
            raise SystemExit
        if (first_N == -2).any():
            raise torch.OutOfMemoryError("CUDA out of memory")
        if (first_N == -3).any():
            raise torch.AcceleratorError("CUDA error: device-side assert triggered")
        return torch.where(first_N == 2, torch.nan, first_N).unsqueeze(1).expand(-1, 10)


def champion(model: Model, best_rows: int = BEST) -> Champion:
    path = FastPath(variant="fp32", forward=model, exact=model, rescores=False, best_rows=best_rows)
    return Champion(featurizer=Featurizer(Digits(), code_version="c1"), card=CARD, path=path, output_shape=(10,))


def rows(*first_pixels: float) -> Features:
    features = np.zeros((len(first_pixels), 1, 28, 28), np.float32)
    features[:, 0, 0, 0] = first_pixels
    return {"features": features}


@pytest.fixture
def model() -> Iterator[Model]:
    model = Model()
    yield model
    model.gate.set()


@pytest.fixture
def passes() -> Passes:
    return Passes("digits", Turns(1), lambda *_: None)


def submitted(passes: Passes, job: Job) -> "Future[Scored]":
    passes.submit(job)
    return job.scored


def first_outputs(scored: "Future[Scored]") -> list[float]:
    return scored.result(WAIT_S).outputs[:, 0].tolist()


def hold(passes: Passes, champion: Champion, model: Model) -> "Future[Scored]":
    """A pass that is under way until the gate opens."""
    model.gate.clear()
    held = submitted(passes, Job(champion, rows(0)))
    assert eventually(lambda: bool(model.passes), WAIT_S)
    return held


def test_what_waits_while_a_pass_runs_shares_the_next_one(passes: Passes, model: Model) -> None:
    serving = champion(model)
    held = hold(passes, serving, model)
    waiting = [submitted(passes, Job(serving, rows(pixel))) for pixel in (3, 4, 5, 6)]
    model.gate.set()
    assert first_outputs(held) == [0]
    assert [first_outputs(each) for each in waiting] == [[3], [4], [5], [6]]
    assert model.passes == [[0], [3, 4, 5, 6]]


def test_a_pass_has_no_more_rows_than_are_best_and_a_large_request_gives_way(passes: Passes, model: Model) -> None:
    serving = champion(model)
    hold(passes, serving, model)
    large = submitted(passes, Job(serving, rows(*range(100, 120))))
    small = submitted(passes, Job(serving, rows(7)))
    model.gate.set()
    assert first_outputs(large) == list(range(100, 120))
    assert first_outputs(small) == [7]
    assert [len(each) for each in model.passes[1:]] == [8, 8, 8]  # 5 rows are padded
    assert model.passes[2][0] == 7


def test_events_and_features_of_several_requests_go_through_the_model_together(passes: Passes, model: Model) -> None:
    serving = champion(model)
    event = decode_event(
        DigitDrawn,
        b'{"event_id": "a", "occurred_at": "2026-01-02T03:04:05Z", "image": "%s"}' % b64encode(bytes([255] * 784)),
        limit_bytes=10_000,
    )
    hold(passes, serving, model)
    of_features, of_events = Job(serving, rows(3, 4), decodes=False), Job(serving, [event, event])
    found = [submitted(passes, job) for job in (of_features, of_events)]
    model.gate.set()
    assert first_outputs(found[0]) == [3, 4]
    assert first_outputs(found[1]) == pytest.approx([(1 - 0.1307) / 0.3081] * 2)
    assert len(model.passes) == 2
    assert found[0].result().predictions is None
    predictions = found[1].result().predictions
    assert predictions is not None
    assert len(predictions.values) == 2


@pytest.mark.parametrize(("bad", "named"), [(1, "row 1: the model raised IndexError"), (2, "row 1: .* not finite")])
def test_a_row_that_the_model_fails_on_ends_its_own_request_alone(
    passes: Passes, model: Model, bad: int, named: str
) -> None:
    serving = champion(model)
    hold(passes, serving, model)
    good, poor, fine = (submitted(passes, Job(serving, rows(*each))) for each in ((3, 4), (5, bad), (6,)))
    model.gate.set()
    assert (first_outputs(good), first_outputs(fine)) == ([3, 4], [6])
    with pytest.raises(InvalidEvent, match=named):
        poor.result(WAIT_S)


def test_what_is_left_of_requests_that_failed_takes_no_room(passes: Passes, model: Model) -> None:
    serving = champion(model)
    for _ in range(WAITING_PASSES):
        with pytest.raises(InvalidEvent, match="row 0"):
            submitted(passes, Job(serving, rows(1, *[3] * (2 * BEST)))).result(WAIT_S)
    assert first_outputs(submitted(passes, Job(serving, rows(4)))) == [4]


def test_a_model_that_would_end_the_process_ends_its_pass_and_the_next_one_runs(passes: Passes, model: Model) -> None:
    serving = champion(model)
    with pytest.raises(InvalidEvent, match="SystemExit"):
        submitted(passes, Job(serving, rows(-1))).result(WAIT_S)
    assert first_outputs(submitted(passes, Job(serving, rows(3)))) == [3]


class Hanging(Digits):
    """Its transform waits at the gate where an image is black."""

    transform_limit_s = WAIT_S

    def __init__(self) -> None:
        self.gate, self.begun = threading.Event(), threading.Event()

    def transform(self, batch: pa.RecordBatch) -> Any:
        if black(batch):
            self.begun.set()
            assert self.gate.wait(WAIT_S)
        return super().transform(batch)


def black(batch: pa.RecordBatch) -> bool:
    return any(image == bytes(784) for image in batch["image"].to_pylist())


def drawn(shade: int) -> DigitDrawn:
    image = b64encode(bytes([shade] * 784)).decode()
    return decode_event(
        DigitDrawn,
        json.dumps({"event_id": "a", "occurred_at": "2026-01-02T03:04:05Z", "image": image}).encode(),
        limit_bytes=10_000,
    )


def test_an_event_on_which_the_transform_hangs_holds_up_no_other(passes: Passes, model: Model) -> None:
    application = Hanging()
    serving = replace(champion(model), featurizer=Featurizer(application, code_version="c1"))
    try:
        hanging = submitted(passes, Job(serving, [drawn(0)]))
        assert application.begun.wait(WAIT_S)
        assert first_outputs(submitted(passes, Job(serving, rows(3)))) == [3]
        assert len(first_outputs(submitted(passes, Job(serving, [drawn(255)])))) == 1
        assert not hanging.done()
    finally:
        application.gate.set()
    assert len(first_outputs(hanging)) == 1


def test_a_request_whose_culprits_cannot_be_told_apart_fails_alone(
    passes: Passes, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def isolated(featurizer: Featurizer, batch: pa.RecordBatch) -> Isolated:
        if black(batch):
            raise TooManyRefused("too many of them fail to be told apart")
        return Isolated(rows_N=list(range(batch.num_rows)), features=featurizer.features(batch), refused={})

    monkeypatch.setattr(Featurizer, "isolated", isolated)
    serving = champion(model)
    hold(passes, serving, model)
    of_events = [submitted(passes, Job(serving, [drawn(shade), drawn(255)])) for shade in (255, 0, 255)]
    of_features = submitted(passes, Job(serving, rows(3)))
    model.gate.set()
    assert [len(first_outputs(of_events[n])) for n in (0, 2)] == [2, 2]
    assert first_outputs(of_features) == [3]
    with pytest.raises(TooManyRefused):
        of_events[1].result(WAIT_S)


def test_without_memory_a_request_is_to_be_sent_again_and_with_a_device_that_failed_the_worker_ends(
    passes: Passes, model: Model
) -> None:
    serving, ended = champion(model), threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: ended.set())
    try:
        with pytest.raises(NotReady, match="too little memory"):
            submitted(passes, Job(serving, rows(3, -2))).result(WAIT_S)
        assert not ended.is_set()
        with pytest.raises(DeviceFailed, match="device-side assert"):
            submitted(passes, Job(serving, rows(3, -3))).result(WAIT_S)
        assert eventually(ended.is_set, WAIT_S)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_rows_of_two_versions_share_no_pass(passes: Passes, model: Model) -> None:
    before, after = champion(model), champion(other := Model())
    hold(passes, before, model)
    found = [submitted(passes, Job(each, rows(pixel))) for each, pixel in ((before, 3), (after, 4), (before, 5))]
    model.gate.set()
    assert [first_outputs(each) for each in found] == [[3], [4], [5]]
    assert (model.passes, other.passes) == ([[0], [3], [5]], [[4]])


def test_past_its_bound_the_queue_refuses_at_once_and_takes_again_when_there_is_room(
    passes: Passes, model: Model
) -> None:
    serving = champion(model)
    hold(passes, serving, model)
    accepted = [submitted(passes, Job(serving, rows(3))) for _ in range(WAITING_PASSES * BEST)]
    with pytest.raises(Overloaded):
        passes.submit(Job(serving, rows(3)))
    with pytest.raises(Overloaded):
        passes.check_room()
    model.gate.set()
    assert all(first_outputs(each) == [3] for each in accepted)
    assert first_outputs(submitted(passes, Job(serving, rows(4)))) == [4]


@pytest.mark.parametrize(("best", "clients"), [(1, 16), (8, 64), (64, 256)])
def test_as_many_clients_may_wait_as_the_model_answers_in_a_few_passes(
    passes: Passes, model: Model, best: int, clients: int
) -> None:
    serving = champion(model, best)
    hold(passes, serving, model)
    accepted = [submitted(passes, Job(serving, rows(3))) for _ in range(clients)]
    model.gate.set()
    assert all(first_outputs(each) == [3] for each in accepted)


@pytest.mark.slow
@pytest.mark.parametrize("best", [1, 64])
def test_in_a_flood_requests_wait_for_few_passes_beside_a_large_one(
    passes: Passes, model: Model, monkeypatch: pytest.MonkeyPatch, best: int
) -> None:
    serving = champion(model, best)
    hold(passes, serving, model)
    monkeypatch.setattr(load_shedding, "BURST_S", -1.0)  # the first refusal is of a flood
    monkeypatch.setattr(load_shedding, "CALM_S", 60.0)
    fill(passes, serving)
    model.gate.set()
    assert eventually(lambda: not passes._jobs and not passes._running, WAIT_S)
    model.passes.clear()
    hold(passes, serving, model)
    large = submitted(passes, Job(serving, rows(*[5] * 100)))
    small = fill(passes, serving)
    assert best <= len(small) <= FEW_PASSES * max(best, 2)
    model.gate.set()
    assert all(first_outputs(each) == [3] for each in small)
    assert first_outputs(large) == [5] * 100


def test_what_is_left_of_a_large_request_is_not_counted_in_a_flood(passes: Passes, model: Model) -> None:
    serving = champion(model)
    model.gate.clear()
    large = submitted(passes, Job(serving, rows(*[5] * 100)))
    assert eventually(lambda: bool(model.passes), WAIT_S)
    assert (passes._ahead_rows, passes._fresh_rows) == (BEST, 0)
    submitted(passes, Job(serving, rows(3)))
    assert (passes._ahead_rows, passes._fresh_rows) == (BEST + 1, 1)
    model.gate.set()
    assert first_outputs(large) == [5] * 100


def fill(passes: Passes, serving: Champion) -> "list[Future[Scored]]":
    """Requests of one row until one is refused."""
    accepted: list[Future[Scored]] = []
    with suppress(Overloaded):
        while True:
            accepted.append(submitted(passes, Job(serving, rows(3))))
    return accepted


@pytest.mark.slow
def test_what_cannot_be_answered_in_time_is_refused_and_what_became_too_late_takes_no_part_in_a_pass(
    passes: Passes, model: Model
) -> None:
    serving = champion(model)
    hold(passes, serving, model)
    late = Job(serving, rows(9), until=time.monotonic() + 0.5)
    found = submitted(passes, late)
    assert eventually(lambda: late.is_over, WAIT_S)
    model.gate.set()
    with pytest.raises(Overloaded, match="before its turn"):
        found.result(WAIT_S)
    assert [9] not in model.passes
    assert (
        first_outputs(submitted(passes, Job(serving, rows(*[3] * 100), until=time.monotonic() + WAIT_S))) == [3] * 100
    )
    model.passes.clear()
    held = hold(passes, serving, model)  # by now it is known how long a pass takes
    with pytest.raises(DeadlinePassed, match="longer than it may"):
        passes.submit(Job(serving, rows(*[3] * 100), until=time.monotonic() + 1e-3))
    model.gate.set()
    assert first_outputs(held) == [0]


def test_an_application_that_waits_has_the_next_turn_however_much_another_asks() -> None:
    turns, order = Turns(1), []
    with turns:
        threads = [threading.Thread(target=lambda n=n: take(n)) for n in range(4)]

        def take(number: int) -> None:
            with turns:
                order.append(number)

        for number, thread in enumerate(threads):
            thread.start()
            assert eventually(lambda n=number: len(turns._waiting) == n + 1, WAIT_S)
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 3]
