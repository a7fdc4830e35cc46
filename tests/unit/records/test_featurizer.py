"""Whatever a transform raises, returns or takes too long for costs the events that cause it, and no others."""

import math
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest
from pydantic_core import to_json

from deeplambda.application import Application, Event
from deeplambda.errors import TooManyRefused
from deeplambda.features import BadFeatures, Tensor
from deeplambda.learned import Vocabulary
from deeplambda.objective import Classification, accuracy
from deeplambda.records.admission import Admitted, admit
from deeplambda.records.decoding import Reason
from deeplambda.records.featurizer import Featurizer, bounded, featurizer_id


class ReviewWritten(Event):
    text: str
    scores: list[float]
    stars: int


class Reviews(Application):
    """Gives two tensors; one review of the word `bad` makes it do what `harm` does."""

    name = "reviews"
    event = ReviewWritten
    sources = ()
    objective = Classification(classes=("good", "bad"))
    metrics: ClassVar = {"accuracy": accuracy}
    hyperparameters: ClassVar = {}
    transform_limit_s = 0.3

    def __init__(self, harm: Callable[[dict[str, Any], int], dict[str, Any]] = lambda given, row: given) -> None:
        self.harm = harm

    def examples(self, source, raw):  # type: ignore[no-untyped-def]
        return iter(())

    def transform(self, batch):  # type: ignore[no-untyped-def]
        texts = batch["text"].to_pylist()
        scores = np.array(batch["scores"].to_pylist(), dtype=np.float32)
        given = {"stars": batch["stars"].to_numpy(), "scores": scores}
        return self.harm(given, texts.index("bad")) if "bad" in texts else given

    def build_model(self, **hyperparameters: Any) -> Any:
        raise NotImplementedError


WANTED = {"stars": Tensor("int64"), "scores": Tensor("float32", (2,))}


def record(event_id: str, text: str = "fine", **changes: Any) -> tuple[bytes, bytes]:
    event = {"event_id": event_id, "occurred_at": "2026-01-02T03:04:05Z", "text": text, "scores": [1, 2], "stars": 5}
    return event_id.encode(), to_json(event | changes)


def admitted(application: Application, *records: tuple[bytes | None, bytes | None]) -> Admitted:
    return admit(Featurizer(application, code_version="c0de", wanted=WANTED), records, limit_bytes=10_000)


def raises(given: dict[str, Any], row: int) -> dict[str, Any]:
    raise KeyError("no such word")


def leaves(given: dict[str, Any], row: int) -> dict[str, Any]:
    sys.exit(1)


def hangs(given: dict[str, Any], row: int) -> dict[str, Any]:
    while True:
        pass


def with_nan(given: dict[str, Any], row: int) -> dict[str, Any]:
    given["scores"][row, 1] = np.nan
    return given


def drops_a_row(given: dict[str, Any], row: int) -> dict[str, Any]:
    return given | {"stars": given["stars"][1:]}


def of_another_type(given: dict[str, Any], row: int) -> dict[str, Any]:
    return given | {"stars": given["stars"].astype(np.float32)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("harm", "reason", "named"),
    [
        (raises, Reason.TRANSFORM_FAILED, r"KeyError: 'no such word' \(test_featurizer.py, line \d+\)"),
        (leaves, Reason.TRANSFORM_FAILED, r"SystemExit: 1 \(test_featurizer.py, line \d+\)"),
        (hangs, Reason.TRANSFORM_FAILED, r"took longer than 0.3 s"),
        (with_nan, Reason.BAD_VALUE, "NaN or infinite"),
        (drops_a_row, Reason.TRANSFORM_FAILED, r"'stars' of shape \(0,\) for 1 events"),
        (of_another_type, Reason.TRANSFORM_FAILED, r"'stars' float32 of shape \(N\)"),
        (lambda given, row: {}, Reason.TRANSFORM_FAILED, "at least one"),
        (lambda given, row: given | {"scores": [[1.0]]}, Reason.TRANSFORM_FAILED, "'scores' as list"),
    ],
)
def test_one_event_that_a_transform_fails_on_is_refused_and_all_others_pass(
    harm: Callable[[dict[str, Any], int], dict[str, Any]], reason: Reason, named: str
) -> None:
    records = [record(f"e{n}", "bad" if n == 4 else "fine", stars=12_340 + n) for n in range(9)]
    found = admitted(Reviews(harm), *records)
    assert [event.event_id for event in found.events_N] == [f"e{n}" for n in range(9) if n != 4]
    np.testing.assert_array_equal(found.features["stars"], [12_340 + n for n in range(9) if n != 4])
    ((row, refusal),) = found.refused
    assert (row, refusal.reason) == (4, reason)
    with pytest.raises(type(refusal), match=named):
        raise refusal


def test_a_shorter_limit_of_one_featurizer_is_no_other_s() -> None:
    def sleeps(given: dict[str, Any], row: int) -> dict[str, Any]:
        time.sleep(0.1)
        return given

    application = Reviews(sleeps)
    champion, candidate = (Featurizer(application, code_version="c0de") for _ in range(2))
    candidate.limit_s = 0.02
    assert admit(candidate, [record("a", "bad")], limit_bytes=10_000).refused
    assert not admit(champion, [record("a", "bad")], limit_bytes=10_000).refused


def test_a_ragged_list_a_huge_number_and_a_key_of_other_bytes_are_refused_and_others_pass() -> None:
    found = admitted(
        Reviews(),
        record("a"),
        record("b", stars=2**70),
        record("c", scores=[1.0, 2.0, 3.0]),
        (b"\xff\xfe", record("d")[1]),
        record("e"),
    )
    assert [event.event_id for event in found.events_N] == ["a", "e"]
    assert {row: refusal.reason for row, refusal in found.refused} == {
        1: Reason.BAD_VALUE,
        2: Reason.TRANSFORM_FAILED,
        3: Reason.KEY_MISMATCH,
    }
    assert len(found.features["stars"]) == 2


@pytest.mark.slow
def test_a_batch_in_which_all_hang_is_given_up_or_gone_through_as_the_caller_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("deeplambda.records.featurizer.SHORTEST_LIMIT_S", 0.05)
    featurizer, records = Featurizer(Reviews(hangs), code_version="c0de"), [record(f"e{n}", "bad") for n in range(8)]
    with pytest.raises(TooManyRefused, match="longer than"):
        admit(featurizer, records, limit_bytes=10_000, within_s=0.1)
    found = admit(featurizer, [*records, record("good")], limit_bytes=10_000, within_s=math.inf)
    assert [event.event_id for event in found.events_N] == ["good"]
    assert {row: refusal.reason for row, refusal in found.refused} == dict.fromkeys(range(8), Reason.TRANSFORM_FAILED)


def test_without_a_declaration_the_first_batch_says_what_the_features_are() -> None:
    featurizer = Featurizer(Reviews(of_another_type), code_version="c0de")
    assert admit(featurizer, [record("a")], limit_bytes=10_000).features["stars"].dtype == np.int64
    ((_, refusal),) = admit(featurizer, [record("b", "bad")], limit_bytes=10_000).refused
    assert refusal.reason == Reason.TRANSFORM_FAILED


class Odd(Reviews):
    """Gives what is right, in a memory layout that PyTorch does not take."""

    def transform(self, batch):  # type: ignore[no-untyped-def]
        given = super().transform(batch)
        return {"stars": given["stars"].astype(">i8")[::-1][::-1], "scores": given["scores"][:, ::-1]}


def test_features_come_in_the_byte_order_and_layout_of_this_machine() -> None:
    features = admitted(Odd(), record("a", stars=12_345)).features
    assert features["stars"].dtype == np.dtype("int64")
    np.testing.assert_array_equal(features["stars"], [12_345])
    np.testing.assert_array_equal(features["scores"], [[2, 1]])
    assert all(array.flags.c_contiguous and array.dtype.isnative for array in features.values())


class Learning(Reviews):
    def fit(self, batches) -> Vocabulary:  # type: ignore[no-untyped-def]
        return Vocabulary.of((text for batch in batches for text in batch["text"].to_pylist()), size=100)

    def transform(self, batch, state):  # type: ignore[no-untyped-def]
        return {"words": state.padded(batch["text"], 4)}


def test_what_was_learned_is_passed_to_the_transform_and_is_part_of_the_featurizers_name() -> None:
    state = Vocabulary(words=("fine", "bad"))
    featurizer = Featurizer(Learning(), code_version="c0de", state=state, state_sha256="ab" * 32)
    features = admit(featurizer, [record("a", "Bad, fine")], limit_bytes=10_000).features
    np.testing.assert_array_equal(features["words"], [[3, 1, 2, 0]])
    assert featurizer.id == featurizer_id("c0de", "ab" * 32) == "c0de-abababababab"
    assert Featurizer(Reviews(), code_version="c0de").id == "c0de"


def test_no_rows_have_no_features() -> None:
    found = admitted(Reviews(raises))
    assert (found.features, found.refused) == ({}, [])


def test_one_row_alone_says_why_it_has_no_features() -> None:
    featurizer = Featurizer(Reviews(raises), code_version="c0de")
    from deeplambda.application import payload_batch

    event = ReviewWritten.model_validate_json(record("a", "bad")[1])
    with pytest.raises(BadFeatures, match="KeyError"):
        featurizer.features(payload_batch(ReviewWritten, [event]))


@pytest.mark.slow
def test_a_process_that_was_forked_after_the_first_call_makes_calls_of_its_own() -> None:
    calls = "bounded(lambda: None, 10, 'it'); child = os.fork(); bounded(lambda: None, 10, 'it')"
    ends = "os._exit(0) if child == 0 else sys.exit(os.waitpid(child, 0)[1])"
    code = f"import os, sys\nfrom deeplambda.records.featurizer import bounded\n{calls}\n{ends}"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_call_that_took_too_long_leaves_the_next_one_a_thread() -> None:
    hung = threading.Event()
    with pytest.raises(BadFeatures, match="it took longer"):
        bounded(hung.wait, 0.05, "it")
    assert bounded(lambda: 7, 60, "it") == 7
    hung.set()
