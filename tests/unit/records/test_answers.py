"""A row whose outputs say nothing has no answer; the rows around it have theirs."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from deeplambda.errors import DeviceFailed, InvalidEvent, NotReady
from deeplambda.features import Features
from deeplambda.objective import Classification, Predictions
from deeplambda.records.answers import answered, answers, outputs_of


class Says:
    """Decodes each row's number to the value of that number."""

    output_size = 1

    def __init__(self, *values: Any) -> None:
        self.values = values

    def loss(self, outputs: Any, labels_N: Any) -> Any:
        raise NotImplementedError

    def label_array(self, labels: Sequence[Any]) -> NDArray[Any]:
        raise NotImplementedError

    def decode(self, outputs: NDArray[np.float32]) -> Predictions:
        found = [self.values[int(number)] for number in outputs[:, 0]]
        if KeyError in found:
            raise KeyError("no such class")
        return Predictions(values=found, confidence_N=np.full(len(found), np.nan))


OUTPUTS = np.arange(4, dtype=np.float32)[:, None]


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ("x" * 256, "256 characters, 255 are the limit"),
        (7, "int, not text"),
        ("\ud800", "UTF-8"),
        (KeyError, r"KeyError: 'no such class' \(test_answers.py, line \d+\)"),
    ],
)
def test_a_row_without_an_answer_is_named_and_the_others_have_theirs(value: Any, named: str) -> None:
    found = answers(Says("a", "b" * 255, value, "d"), OUTPUTS)
    assert (found.rows_N, found.values_N) == ([0, 1, 3], ["a", "b" * 255, "d"])
    assert list(found.refused) == [2]
    with pytest.raises(InvalidEvent, match=f"row 2: .*{named}"):
        found.all()


class TooFew(Says):
    def decode(self, outputs: NDArray[np.float32]) -> Predictions:
        return Predictions(values=[], confidence_N=np.zeros(0))


def test_an_objective_that_leaves_rows_out_answers_none() -> None:
    assert set(answers(TooFew(), OUTPUTS).refused) == {0, 1, 2, 3}


def test_a_sound_objective_answers_all() -> None:
    found = answers(Classification("ab"), np.array([[2, 0], [0, 3]], np.float32)).all()
    assert found.values == ["a", "b"]
    np.testing.assert_allclose(found.confidence_N, [0.881, 0.953], atol=1e-3)


def test_no_rows_have_no_answers() -> None:
    assert answers(Classification("ab"), np.zeros((0, 2), np.float32)).all().values == []


FEATURES = {"features": OUTPUTS}


class Fussy:
    """A model that gives its input back, and fails on the third row."""

    def __init__(self, failure: BaseException | float) -> None:
        self.failure = failure

    def __call__(self, features: Features) -> NDArray[np.float32]:
        outputs = features["features"].copy()
        if (outputs == 2).any() and isinstance(self.failure, BaseException):
            raise self.failure
        outputs[outputs == 2] = self.failure if isinstance(self.failure, float) else 2
        return outputs


@pytest.mark.parametrize(
    ("failure", "named"),
    [
        (ValueError("never seen"), "ValueError: never seen"),
        (SystemExit(3), "SystemExit: 3"),
        (RuntimeError("index out of range"), "RuntimeError"),
        (MemoryError("Unable to allocate 7 PiB"), "7 PiB"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"), "memory"),
        (float("nan"), "not finite"),
    ],
)
def test_a_row_that_the_model_has_no_answer_to_is_named_and_the_others_have_theirs(
    failure: BaseException | float, named: str
) -> None:
    found = answered(Fussy(failure), Says("a", "b", "c", "d"), FEATURES)
    assert (found.rows_N, found.values_N) == ([0, 1, 3], ["a", "b", "d"])
    assert named in found.refused[2].message


def test_a_model_that_leaves_rows_out_has_an_answer_to_none_of_them() -> None:
    found = outputs_of(lambda features: features["features"][features["features"][:, 0] != 2], FEATURES)
    assert (found.rows_N, list(found.refused)) == ([0, 1, 3], [2])


class OfAccelerator(RuntimeError):
    """As PyTorch's own, which are of this kind."""


@pytest.mark.parametrize(
    ("failure", "raised"),
    [
        (OfAccelerator("CUDA out of memory. Tried to allocate 20.00 MiB"), NotReady),
        (RuntimeError("CUDA error: out of memory"), NotReady),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), NotReady),
        (OfAccelerator("CUDA error: an illegal memory access was encountered"), DeviceFailed),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), DeviceFailed),
    ],
)
def test_what_is_no_rows_fault_refuses_none(failure: Exception, raised: type[NotReady]) -> None:
    with pytest.raises(NotReady) as found:
        outputs_of(Fussy(failure), FEATURES)
    assert type(found.value) is raised
    says = Says(*"abcd")
    says.decode = lambda outputs: Fussy(failure)({"features": outputs})  # type: ignore[method-assign,assignment,return-value]
    with pytest.raises(raised):
        answers(says, OUTPUTS)
