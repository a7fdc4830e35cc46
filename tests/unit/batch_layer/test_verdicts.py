"""What decides: figures of the same rows, with every rule of the gate. Legend: N rows, C classes."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from batch_layer.criterion import Criterion
from batch_layer.same_rows import SameRows
from batch_layer.verdicts import LATENCY, Role, compared, slices_of, verdict
from deeplambda.application import Application, Event
from deeplambda.objective import Classification, Objective, Regression
from deeplambda.records.verdict import Comparison, Verdict
from deeplambda.splits import RECENT, TEST
from tests.unit.batch_layer import test_gate as gate

ROWS = 1_000
ACCURACY = Criterion(metric="accuracy")


class Coin(Application):
    name = "coin"
    event = Event
    sources = ()
    objective: Objective = Classification(("head", "tail"))
    metrics: Any = ("accuracy",)
    hyperparameters = {}  # noqa: RUF012

    def transform(self, batch: pa.RecordBatch) -> Any: ...

    def build_model(self) -> Any: ...


def right(rows: int, more: int = 0, of: int = ROWS) -> NDArray[np.bool_]:
    """The first `rows` rows are right, and the last `more`."""
    return (np.arange(of) < rows) | (np.arange(of) >= of - more)


def answers(right_N: NDArray[np.bool_], sure: float = 2.0) -> NDArray[np.float32]:
    """Logits for labels that are all `tail`, (N, 2)."""
    return np.where(right_N[:, None], [[0, sure]], [[sure, 0]]).astype(np.float32)


def same_rows(ours_N: NDArray[Any], theirs_N: NDArray[Any], **slices: list[Any]) -> SameRows:
    return SameRows(
        application=Coin(),
        other=Coin(),
        labels_N=np.ones(len(ours_N), np.int64),
        ours_N=ours_N,
        theirs_N=theirs_N,
        slices={name: pa.chunked_array([values]) for name, values in slices.items()},
    )


def measured(
    ours_N: NDArray[np.bool_],
    theirs_N: NDArray[np.bool_],
    split: str = TEST,
    against: int = 1,
    role: Role = "champion",
    criterion: Criterion = ACCURACY,
    **slices: list[Any],
) -> list[Comparison]:
    return compared(same_rows(answers(ours_N), answers(theirs_N), **slices), split, against, role, criterion)


def judged(*comparisons: list[Comparison], criterion: Criterion = ACCURACY, **others: Any) -> Verdict:
    """Version 2 against the champion, version 1."""
    every = [each for some in comparisons for each in some]
    return verdict(gate.card(2, 0.9), gate.card(1, 0.9), "c0de", criterion, every, **others)


def test_a_difference_says_what_it_comes_from_and_how_sure_it_is() -> None:
    (whole, calibration) = measured(right(960), right(950))
    assert (whole.candidate, whole.other, whole.test, whole.rows) == (0.96, 0.95, "McNemar", ROWS)
    assert whole.difference == pytest.approx(0.01)
    assert whole.low is not None
    assert whole.high is not None
    assert 0 < whole.low < 0.01 < whole.high
    assert (calibration.metric, calibration.test) == ("calibration_error", "bootstrap")


def test_what_was_measured_on_the_same_rows_counts_more_than_cards() -> None:
    better_card, worse_card = gate.card(2, 0.99), gate.card(2, 0.90)
    champion = gate.card(1, 0.98)
    assert not verdict(worse_card, champion, "c0de", ACCURACY, measured(right(950, 30), right(950))).reasons
    (reason,) = verdict(better_card, champion, "c0de", ACCURACY, measured(right(900), right(950))).reasons
    assert "0.9000 is worse than 0.9500" in reason
    assert "both on the same 1,000 test rows" in reason


def test_a_version_that_is_worse_by_chance_within_the_margin_may_serve_unless_proof_is_asked_for() -> None:
    proving = Criterion(metric="accuracy", proof=True)
    few = right(91, of=100), right(91, of=100)
    assert not judged(measured(*few)).reasons
    (reason,) = judged(measured(*few, criterion=proving), criterion=proving).reasons
    assert "not told from chance" in reason
    many = right(9_100, of=10_000), right(9_100, of=10_000)
    assert not judged(measured(*many, criterion=proving), criterion=proving).reasons


@pytest.mark.slow
def test_too_few_recent_rows_to_say_anything_leave_proof_and_effect_to_the_test_split() -> None:
    asked = Criterion(metric="f1_macro", proof=True, minimum_effect=0.01)
    of_test = measured(right(950), right(900), criterion=asked)
    few = measured(right(15, of=15), right(14, of=15), split=RECENT, criterion=asked)
    assert few[0].low is None, "as the bootstrap tells of so few rows"
    worse = measured(right(10, of=15), right(14, of=15), split=RECENT, criterion=asked)
    champion, candidate = (gate.card(version, 0.9, f1_macro=0.9) for version in (1, 2))
    assert not verdict(candidate, champion, "c0de", asked, [*of_test, *few]).reasons
    assert verdict(candidate, champion, "c0de", asked, [*of_test, *worse]).reasons
    assert verdict(candidate, champion, "c0de", asked, few).reasons, "without the test split they show nothing"


def test_ten_promotions_each_a_little_worse_than_the_one_before_are_stopped() -> None:
    correct, best, promoted = 990, {TEST: 1}, 0
    for version in range(2, 12):
        pair = right(correct - 4), right(correct)
        comparisons = measured(*pair, against=version - 1)
        if best[TEST] != version - 1:
            comparisons += measured(right(correct - 4), right(990), against=best[TEST], role="best")
        champion = gate.card(version - 1, 0.9)
        found = verdict(gate.card(version, 0.9), champion, "c0de", ACCURACY, comparisons, best=best)
        if found.reasons:
            assert "of the best so far, version 1" in found.reasons[0]
            break
        correct, best, promoted = correct - 4, found.best, promoted + 1
    assert promoted == 1


def test_a_better_version_is_the_one_that_later_ones_are_compared_with() -> None:
    assert judged(measured(right(960), right(950)), best={TEST: 1, RECENT: 1}).best == {TEST: 2, RECENT: 1}
    assert judged(measured(right(948), right(950)), best={TEST: 1}).best == {TEST: 1}
    better_than_champion = measured(right(949), right(945), against=1)
    worse_than_best = measured(right(949), right(950), against=7, role="best")
    assert judged(better_than_champion, worse_than_best, best={TEST: 7}).best == {TEST: 7}


def test_one_that_is_proven_better_on_recent_events_may_forget_a_little() -> None:
    forgets = measured(right(980), right(990))
    assert judged(forgets).reasons
    assert not judged(forgets, measured(right(700), right(500), RECENT)).reasons
    assert judged(forgets, measured(right(501), right(500), RECENT)).reasons, "a gain by chance"
    assert judged(measured(right(900), right(990)), measured(right(700), right(500), RECENT)).reasons, "too much"


def test_a_gain_on_recent_events_excuses_no_loss_of_another_metric() -> None:
    right_N = right(800)
    boasts = compared(same_rows(answers(right_N, sure=9), answers(right_N, sure=1.4)), TEST, 1, "champion", ACCURACY)
    assert next(each for each in boasts if each.refused).difference > -0.3
    lenient = Criterion(metric="accuracy", forgetting=0.3)
    (reason,) = judged(boasts, measured(right(700), right(500), RECENT), criterion=lenient).reasons
    assert "its confidence is" in reason


def test_a_slice_s_loss_is_excused_by_that_slice_s_own_gain_alone() -> None:
    country = ["CH"] * 900 + ["LI"] * 100
    lenient = Criterion(metric="accuracy", forgetting=0.2)
    before = measured(right(985), right(990, 10), criterion=lenient, country=country)
    assert [each.slice for each in before if each.refused] == [None, "country=LI"]
    of_all, of_others = right(600, 50), right(600)
    recent = measured(of_all, right(500), RECENT, criterion=lenient, country=country)
    assert not judged(before, recent, criterion=lenient).reasons
    recent = measured(of_others, right(500), RECENT, criterion=lenient, country=country)
    (reason,) = judged(before, recent, criterion=lenient).reasons
    assert "where country=LI" in reason


def test_a_version_that_was_compared_with_the_best_alone_is_held_against_the_champion_s_card() -> None:
    even_with_best = measured(right(950), right(950), against=7, role="best")
    worse, champion = gate.card(3, 0.5), gate.card(2, 0.9)
    (reason,) = verdict(worse, champion, "c0de", ACCURACY, even_with_best).reasons
    assert "0.5000 is worse than 0.9000 of the champion" in reason
    assert not verdict(gate.card(3, 0.9), champion, "c0de", ACCURACY, even_with_best).reasons


def test_what_else_speaks_against_a_version_counts_beside_cards() -> None:
    (reason,) = judged(measured(right(900), right(950), against=7, role="best")).reasons
    assert "of the best so far, version 7" in reason
    (reason,) = judged(measured(right(480), right(500), RECENT)).reasons
    assert "1,000 recent rows" in reason


@pytest.mark.parametrize(
    ("asked", "why"), [({"proof": True}, "asks for proof"), ({"minimum_effect": 0.01}, "asks for a minimum effect")]
)
@pytest.mark.parametrize("metric", ["accuracy", "recall"])
def test_cards_prove_nothing(asked: dict[str, Any], why: str, metric: str) -> None:
    demanding = Criterion(metric=metric, **asked)
    candidate, champion = gate.card(2, 0.99, recall=0.99), gate.card(1, 0.9)  # whose card has no recall
    with_best = [] if metric == "recall" else measured(right(950), right(950), against=7, role="best")
    for comparisons in ([], with_best):
        (reason,) = verdict(candidate, champion, "c0de", demanding, comparisons).reasons
        assert why in reason
        assert "--force" in reason
    assert not verdict(candidate, None, "c0de", demanding).reasons, "the first version has none to be compared with"
    assert not verdict(candidate, candidate, "c0de", demanding).reasons, "it serves already"


def test_recent_events_alone_may_show_a_minimum_effect() -> None:
    demanding = Criterion(metric="accuracy", minimum_effect=0.01)
    assert not judged(measured(right(965), right(950), RECENT), criterion=demanding).reasons


def test_one_that_is_worse_on_recent_events_may_not_serve() -> None:
    (reason,) = judged(measured(right(995), right(990)), measured(right(480), right(500), RECENT)).reasons
    assert "1,000 recent rows" in reason


def test_a_minimum_effect_is_asked_for_beyond_chance() -> None:
    demanding = Criterion(metric="accuracy", minimum_effect=0.01)
    assert not judged(measured(right(965), right(950)), criterion=demanding).reasons
    assert judged(measured(right(955), right(950)), criterion=demanding).reasons
    few = measured(right(93, of=100), right(91, of=100))
    (reason,) = judged(few, criterion=demanding).reasons
    assert "not told from chance" in reason


def test_a_slice_that_is_worse_beyond_chance_is_named() -> None:
    country = ["CH"] * 900 + ["LI"] * 100
    ours_N, theirs_N = right(950), right(960)
    theirs_N[:12] = False  # so the champion is better in the last hundred rows alone
    found = judged(measured(ours_N, theirs_N, country=country))
    (reason,) = found.reasons
    assert "where country=LI" in reason
    slices = {each.slice: each.refused for each in found.comparisons if each.slice}
    assert slices == {"country=CH": False, "country=LI": True}
    by_chance = judged(measured(right(951), right(950, 1), country=country))
    assert not by_chance.reasons


def test_numbers_are_sliced_in_quarters_and_few_rows_are_no_slice() -> None:
    found = dict(slices_of({"amount": pa.chunked_array([[float(n) for n in range(100)]])}))
    assert [len(rows_N) for rows_N in found.values()] == [25] * 4
    assert not dict(slices_of({"country": pa.chunked_array([["CH"] * 19])}))


def test_a_version_whose_confidence_says_less_may_not_serve() -> None:
    right_N = right(800)
    honest, boasting = answers(right_N, sure=1.4), answers(right_N, sure=9)
    (reason,) = judged(compared(same_rows(boasting, honest), TEST, 1, "champion", ACCURACY)).reasons
    assert "its confidence is" in reason
    assert not judged(compared(same_rows(honest, boasting), TEST, 1, "champion", ACCURACY)).reasons


def test_a_version_that_takes_too_long_may_not_serve() -> None:
    hurried = Criterion(metric="accuracy", latency_budget_ms=5)
    even = measured(right(950), right(950))
    assert not judged(even, criterion=hurried, figures={LATENCY: 4.9}).reasons
    (reason,) = judged(even, criterion=hurried, figures={LATENCY: 5.1}).reasons
    assert "5.10 ms" in reason


def test_a_metric_that_is_no_share_of_rows_is_resampled() -> None:
    class Prices(Coin):
        objective = Regression()
        metrics = ("rmse",)

    random = np.random.default_rng(0)
    labels_N = random.normal(size=ROWS)
    theirs_N = (labels_N + random.normal(size=ROWS)).astype(np.float32)
    ours_N = (labels_N + 1.2 * (theirs_N - labels_N)).astype(np.float32)
    same = SameRows(
        application=Prices(), other=Prices(), labels_N=labels_N, ours_N=ours_N, theirs_N=theirs_N, slices={}
    )
    criterion = Criterion.of(Prices())
    (whole,) = compared(same, TEST, 1, "champion", criterion)
    assert whole.test == "bootstrap"
    assert whole.refused
    assert whole.high is not None
    assert whole.high < -0.1


@pytest.mark.slow
def test_each_version_is_judged_by_what_it_makes_of_its_outputs() -> None:
    class Alarm(Coin):
        objective = Classification(("heads", "tail"), threshold=0.01)
        metrics = ("f1_macro",)

    labels_N = (np.arange(ROWS) % 50 == 0).astype(np.int64)
    outputs_N = answers(labels_N == 1)
    same = SameRows(
        application=Alarm(), other=Coin(), labels_N=labels_N, ours_N=outputs_N, theirs_N=outputs_N, slices={}
    )
    (whole, *_) = compared(same, TEST, 1, "champion", Criterion.of(Alarm()))
    assert whole.other == 1
    assert whole.candidate < 0.1
    assert whole.refused
