"""What ends an experiment, and what people are told of it."""

from typing import Any

import pytest

from batch_layer.criterion import Criterion
from batch_layer.experiment_answers import answer_row, scored
from batch_layer.experiment_commands import described, share_of
from batch_layer.live_verdicts import Labelled, Scores, compared, decision
from deeplambda.clock import now
from deeplambda.errors import BadInput
from deeplambda.records.experiments import Said
from deeplambda.state.experiment_store import Experiment
from tests.unit.batch_layer.test_sequential_tests import CRITERION


def experiment(gained: int = 0, lost: int = 0, same: int = 0, **known: Any) -> Experiment:
    """A shadow of which so many labels say that one version alone is right, or neither."""
    rows = gained + lost + same
    paired = Scores(rows=rows, total=gained - lost, squares=gained + lost, above=gained, below=lost)
    right = [Scores(rows=rows, total=same + each, squares=same + each, above=same + each) for each in (gained, lost)]
    found = Labelled(candidate=right[0], champion=right[1], paired=paired, numbers=False)
    return Experiment(
        **{
            "application": "digits",
            "number": 4,
            "kind": "shadow",
            "version": 3,
            "champion": 2,
            "share": 0.2,
            "until_decided": True,
            "started_at": now(),
            "answered": rows,
            "labelled": rows,
            "comparison": compared(found, "shadow", 2, CRITERION) if rows else None,
        }
        | known
    )


def test_nothing_is_decided_without_labels() -> None:
    assert decision(experiment(), CRITERION) is None


def test_a_few_labels_decide_nothing_though_all_speak_for_one_side() -> None:
    assert decision(experiment(gained=3), CRITERION) is None
    assert decision(experiment(lost=3), CRITERION) is None


@pytest.mark.parametrize(("gained", "lost", "state"), [(60, 10, "promoted"), (10, 60, "rejected")])
def test_the_reason_has_the_figures(gained: int, lost: int, state: str) -> None:
    found = experiment(gained, lost, same=430)
    decided = decision(found, CRITERION)
    assert decided is not None
    assert decided[0] == state
    assert "by 500 labels" in decided[1]
    assert f"{(gained - lost) / 500:+.4f}" in decided[1]


def test_a_minimum_effect_asks_for_a_gain() -> None:
    wanted = Criterion(metric="accuracy", margin=0.01, minimum_effect=0.05)
    as_good = experiment(gained=100, lost=100, same=4_800)
    assert decision(as_good, Criterion(metric="accuracy", margin=0.02)) is not None
    assert decision(as_good, wanted) is not None
    assert decision(as_good, wanted)[0] == "rejected"  # type: ignore[index]
    assert decision(experiment(gained=600, lost=100, same=4_300), wanted)[0] == "promoted"  # type: ignore[index]


def test_one_that_has_no_answer_to_many_events_is_rejected_whatever_labels_say() -> None:
    failing = experiment(answered=980, failed=20, failure="the model raised KeyError")
    decided = decision(failing, CRITERION)
    assert decided is not None
    assert decided[0] == "rejected"
    assert "20 of 1000 events" in decided[1]
    assert "KeyError" in decided[1]
    assert decision(experiment(answered=100_000, failed=20), CRITERION) is None


@pytest.mark.parametrize(
    ("candidate", "error", "label", "scores"),
    [
        (Said(version=3, prediction="a"), None, "a", (1.0, 0.0)),
        (Said(version=3, prediction="b"), None, "a", (0.0, 0.0)),
        (None, "the model raised KeyError", "b", (0.0, 1.0)),
    ],
)
def test_an_answer_is_right_or_wrong_and_none_is_wrong(
    candidate: Said | None, error: str | None, label: str, scores: tuple[float, float]
) -> None:
    row = type("Row", (), answer_row("e", candidate, Said(version=2, prediction="b"), error, now()))
    found = scored(row, label)
    assert (found["candidate_score"], found["champion_score"]) == scores


@pytest.mark.parametrize(("label", "error"), [("3.5", -0.5), ("nan", None), ("1e300", None), ("many", None)])
def test_of_numbers_the_error_counts_and_what_is_no_number_does_not(label: str, error: float | None) -> None:
    said = Said(version=3, prediction="3", value=3.0)
    row = type("Row", (), answer_row("e", said, said, None, now()))
    assert scored(row, label)["candidate_score"] == error


@pytest.mark.parametrize(("text", "share"), [("5%", 0.05), ("0.05", 0.05), ("100%", 1.0)])
def test_a_share_is_written_as_people_write_it(text: str, share: float) -> None:
    assert share_of(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["0", "-5%", "101%", "half", "nan"])
def test_a_share_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="--share"):
        share_of(text)


def test_people_see_who_began_it_and_what_is_known() -> None:
    lines = "\n".join(described(experiment(60, 10, 430, who="ada", why="new labels", agreed=430, failed=2, shed=7)))
    for shown in (
        "version 3 beside 2",
        "begun by ada: new labels",
        "the same of 430; failed 2, shed 7",
        "by 500 labels",
    ):
        assert shown in lines
