"""Which candidate may serve: comparisons on the same rows, and the rules that make a verdict of them. Pure.

1. On each split, the candidate may be worse than the champion by the application's margin, and no more.
2. Nor may it be worse by more than that than the version that did best on the split so far: else ten versions, each
   a little worse than the one before, would add up.
3. One that is better on the newest labelled events, beyond chance, may lose somewhat more on the test split: the world
   has changed, and the test split is of before. A slice's loss there is excused by that slice's gain alone.
4. In no declared slice may it be worse by more than the margin, beyond chance; nor may its confidence say less than the
   champion's. A minimum effect and a latency budget count where the application has them.
5. Where it was not compared with the champion on the test split's rows, their cards are. Cards are of different rows
   and prove nothing: an application that asks for proof, or for a minimum effect, refuses then.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from batch_layer.criterion import Criterion
from batch_layer.paired_tests import Difference, mcnemar, resampled
from batch_layer.same_rows import SameRows
from deeplambda.errors import BadInput
from deeplambda.metrics import calibration_error, confidence, measured, right_rows
from deeplambda.records.slices import MOST_VALUES, quarter_edges, quarter_name, quarters_of, value_name
from deeplambda.records.verdict import Comparison, Verdict
from deeplambda.splits import RECENT, TEST
from deeplambda.state.card import Card

CALIBRATION, LATENCY = "calibration_error", "latency_ms"
_LEVEL = 0.05
_SLICE_ROWS = 20
"""Fewer rows show nothing."""


Role = Literal["champion", "best"]


def compared(same: SameRows, split: str, against: int, role: Role, criterion: Criterion) -> list[Comparison]:
    """The comparisons of a candidate with one version on one split's rows: of all rows; with the champion, of
    calibration and of each slice too.

    Raises: BadInput when the rows do not determine the application's metric.
    """
    comparing = _Comparing(same, split, against, role, criterion)
    found = [comparing.rows(np.arange(len(same.labels_N)))]
    if role == "best":
        return found
    found += comparing.calibration()
    slices = list(slices_of(same.slices))
    for name, rows_M in slices:
        try:
            found.append(comparing.rows(rows_M, name, slices=len(slices)))
        except BadInput:  # such as a slice without a row of one class: nothing can be said of it
            continue
    return found


@dataclass(frozen=True)
class _Comparing:
    same: SameRows
    split: str
    against: int
    role: Role
    criterion: Criterion

    def rows(self, rows_M: NDArray[np.intp], name: str | None = None, slices: int = 1) -> Comparison:
        """By the application's metric, on some of the rows. name: of the slice that they are, one of `slices`."""
        same, metric = self.same, self.criterion.metric
        labels_M, ours_M, theirs_M = (each[rows_M] for each in (same.labels_N, same.ours_N, same.theirs_N))

        def ours(chosen: NDArray[np.intp] | slice) -> float:
            return measured(same.application, labels_M[chosen], ours_M[chosen], [metric])[metric]

        def theirs(chosen: NDArray[np.intp] | slice) -> float:
            return measured(same.other, labels_M[chosen], theirs_M[chosen], [metric])[metric]

        def gained(chosen: NDArray[np.intp]) -> float:
            try:
                return self.criterion.gain(ours(chosen), theirs(chosen))
            except BadInput:  # such as a draw without a row of one class
                return math.nan

        candidate, other = ours(slice(None)), theirs(slice(None))
        right, others = (
            right_rows(application.objective, labels_M, outputs_M)
            for application, outputs_M in ((same.application, ours_M), (same.other, theirs_M))
        )
        if right is not None and others is not None and _is_share(candidate, right) and _is_share(other, others):
            found = mcnemar(right, others)
        else:
            found = resampled(gained, len(rows_M))
        refused = self._refused(found) if name is None else self._refused_slice(found, slices)
        return self._comparison(metric, len(rows_M), candidate, other, found, refused=refused, slice=name)

    def calibration(self) -> Iterator[Comparison]:
        """One for a classifier, else none."""
        same, labels_N = self.same, self.same.labels_N
        ours = confidence(same.application.objective, labels_N, same.ours_N)
        theirs = confidence(same.other.objective, labels_N, same.theirs_N)
        if ours is None or theirs is None:
            return

        def gained(chosen: NDArray[np.intp]) -> float:
            error, other = (calibration_error(of[0][chosen], of[1][chosen]) for of in (ours, theirs))
            return other - error

        found = resampled(gained, len(labels_N))
        figures = calibration_error(*ours), calibration_error(*theirs)
        refused = found.high is not None and found.high < -self.criterion.calibration_margin
        yield self._comparison(CALIBRATION, len(labels_N), *figures, found, refused=refused)

    def _refused(self, found: Difference) -> bool:
        """Rule 3 is not of one comparison alone."""
        margin = self.criterion.margin
        # Few recent rows bound nothing; they are asked for no proof, which the test split's give.
        unproven = self.split == TEST if found.low is None else found.low < -margin
        return found.value < -margin or (self.criterion.proof and unproven)

    def _refused_slice(self, found: Difference, slices: int) -> bool:
        """With Bonferroni's correction, for there are many."""
        return found.value < -self.criterion.margin and found.p_worse < _LEVEL / slices

    def _comparison(
        self, metric: str, rows: int, candidate: float, other: float, found: Difference, **others: Any
    ) -> Comparison:
        return Comparison(
            split=self.split,
            against=self.against,
            role=self.role,
            metric=metric,
            rows=rows,
            candidate=candidate,
            other=other,
            difference=found.value,
            low=found.low,
            high=found.high,
            p=found.p_better,
            test=found.test,
            **others,
        )


def _is_share(figure: float, right_M: NDArray[np.bool_]) -> bool:
    """Whether a metric is the share of rows that are right, whatever it is called."""
    return math.isclose(figure, float(right_M.mean()), rel_tol=1e-9)


def slices_of(columns: Mapping[str, pa.ChunkedArray]) -> Iterator[tuple[str, NDArray[np.intp]]]:
    """`field=value` and the rows that it is true of, in each field's order; a number's values in quarters."""
    for field, column in columns.items():
        if pa.types.is_floating(column.type) or (pa.types.is_integer(column.type) and _many(column)):
            numbers_N = column.to_numpy(zero_copy_only=False).astype(float)
            edges = quarter_edges(numbers_N)
            quarter_N = quarters_of(numbers_N, edges)
            named: Iterable[tuple[str, NDArray[Any]]] = (
                (quarter_name(field, edges, n), (quarter_N == n) & ~np.isnan(numbers_N)) for n in range(len(edges) + 1)
            )
        else:
            texts_N = np.array([str(value) for value in column.to_pylist()], dtype=object)
            values, counts = np.unique(texts_N, return_counts=True)
            often = values[np.argsort(-counts, kind="stable")][:MOST_VALUES]
            named = ((value_name(field, value), texts_N == value) for value in often)
        for name, chosen_N in named:
            if chosen_N.sum() >= _SLICE_ROWS:
                yield name, np.flatnonzero(chosen_N)


def _many(column: pa.ChunkedArray) -> bool:
    return int(pc.count_distinct(column).as_py()) > MOST_VALUES


def verdict(
    candidate: Card,
    champion: Card | None,
    code_version: str,
    criterion: Criterion,
    comparisons: Sequence[Comparison] = (),
    figures: Mapping[str, float] | None = None,
    best: Mapping[str, int] | None = None,
) -> Verdict:
    """Whether `candidate` may serve.

    code_version: of the application as it is deployed. comparisons: with the champion, on the same rows; without one of
    the test split, what their cards say is compared too, each of the test split of its own data set. On each split
    those with the version that did best so far follow. figures: of the candidate, by name. best: by split, that one.
    """
    reasons = [_unfit(candidate, code_version, criterion)]
    if champion is not None and champion.version != candidate.version and reasons == [None]:
        with_champion = {each.split: each for each in comparisons if _of_all_rows(each, criterion)}
        reasons += [_said(each, champion.version) for each in _refusing(comparisons, criterion)]
        if TEST not in with_champion:
            reasons += [_worse_card(candidate, champion, criterion), _without_proof(champion, criterion)]
        asked = with_champion.get(RECENT)
        if asked is None or asked.low is None:  # recent rows are none, or too few to say anything
            asked = with_champion.get(TEST, asked)
        reasons.append(_without_effect(asked, champion, criterion))
    latency_ms = (figures or {}).get(LATENCY, 0.0)
    if criterion.latency_budget_ms is not None and latency_ms > criterion.latency_budget_ms:
        reasons.append(
            f"one event takes it {latency_ms:.2f} ms in the median, more than the {criterion.latency_budget_ms:g} ms "
            "that the application allows"
        )
    refused = [reason for reason in reasons if reason]
    return Verdict(
        version=candidate.version,
        reasons=refused,
        comparisons=list(comparisons),
        figures=dict(figures or {}),
        best=_best(candidate, comparisons, best or {}),
    )


def _unfit(candidate: Card, code_version: str, criterion: Criterion) -> str | None:
    """Why it may not serve, whatever the champion is like."""
    if candidate.code_version != code_version:
        return (
            f"it was trained with code {candidate.code_version}, but {code_version} is deployed, whose transform may "
            "give other features: train again"
        )
    for name, value in candidate.metrics.items():
        if not math.isfinite(value):
            return f"its {name} is {value}"
    return None if criterion.metric in candidate.metrics else f"its card has no {criterion.metric}"


def _of_all_rows(comparison: Comparison, criterion: Criterion) -> bool:
    """Whether it is that of all rows of a split, with the champion, by the application's metric."""
    return (comparison.role, comparison.metric, comparison.slice) == ("champion", criterion.metric, None)


def _worse_card(candidate: Card, champion: Card, criterion: Criterion) -> str | None:
    name = criterion.metric
    if name not in champion.metrics:
        return None
    found, wanted = candidate.metrics[name], champion.metrics[name]
    if criterion.gain(found, wanted) >= -criterion.margin:
        return None
    return (
        f"its {name} {found:.4f} is worse than {wanted:.4f} of the champion, version {champion.version}, by more than "
        f"{criterion.margin:g} (each on the test rows of its own data set)"
    )


def _without_proof(champion: Card, criterion: Criterion) -> str | None:
    if not criterion.proof:
        return None
    return (
        f"the application asks for proof, and it was not compared on the same test rows with the champion, version "
        f"{champion.version}: only a person may promote it, by --force"
    )


def _refusing(comparisons: Sequence[Comparison], criterion: Criterion) -> list[Comparison]:
    """Those that speak against the candidate, with rule 3."""
    gained = {
        each.slice
        for each in comparisons
        if (each.split, each.role, each.metric) == (RECENT, "champion", criterion.metric)
        and each.difference > 0
        and each.p < _LEVEL
    }

    def excused(each: Comparison) -> bool:
        of_before = each.split == TEST and each.metric == criterion.metric and each.slice in gained
        return of_before and each.difference >= -criterion.forgetting_margin

    return [each for each in comparisons if each.refused and not excused(each)]


def _without_effect(asked: Comparison | None, champion: Card, criterion: Criterion) -> str | None:
    """asked: the comparison with the champion that has to show the effect; None where there is none."""
    if criterion.minimum_effect is None:
        return None
    if asked is None:
        return (
            f"the application asks for a minimum effect, and it was not compared on the same rows with the champion, "
            f"version {champion.version}: only a person may promote it, by --force"
        )
    if asked.difference >= criterion.minimum_effect and asked.p < _LEVEL:
        return None
    return (
        f"its {asked.metric} {asked.candidate:.4f} is not better than {asked.other:.4f} of the champion, version "
        f"{asked.against}, by {criterion.minimum_effect:g} beyond chance ({_how_sure(asked)})"
    )


def _said(refused: Comparison, champion: int) -> str:
    who = "the champion" if refused.against == champion else "the best so far"
    if refused.metric == CALIBRATION:
        return (
            f"its confidence is {refused.candidate:.4f} from the share of right answers, that of {who}, version "
            f"{refused.against}, {refused.other:.4f} ({_how_sure(refused)})"
        )
    where = f" where {refused.slice}" if refused.slice else ""
    return (
        f"its {refused.metric} {refused.candidate:.4f}{where} is worse than {refused.other:.4f} of {who}, version "
        f"{refused.against}, by more than the margin ({_how_sure(refused)})"
    )


def _how_sure(comparison: Comparison) -> str:
    between = (
        ""
        if comparison.low is None or comparison.high is None
        else f"; the difference lies between {comparison.low:+.4f} and {comparison.high:+.4f}"
    )
    told = "told from chance" if (comparison.high or 0) < 0 or (comparison.low or 0) > 0 else "not told from chance"
    return f"both on the same {comparison.rows:,} {comparison.split} rows{between}, {told} by {comparison.test}"


def _best(candidate: Card, comparisons: Sequence[Comparison], before: Mapping[str, int]) -> dict[str, int]:
    """By split, which version did best, this one included: none gives way but to a better."""
    best = {**before, TEST: candidate.version}
    for each in comparisons:  # the one with the best so far comes after the champion's, where these are two versions
        if each.slice is None and each.metric != CALIBRATION:
            best[each.split] = each.against if each.difference < 0 else candidate.version
    return best
