"""The gate's verdict on a candidate: each comparison that it rests on, with its figures, and in words what speaks
against it."""

from typing import Literal

from pydantic import BaseModel, ConfigDict


class Comparison(BaseModel):
    """A candidate beside another version on the same rows.

    split: `test` or `recent`; `live` of events that were labelled in an experiment. role: why `against` is compared
    with: it serves, or did best on this split so far. slice: `field=value` where only those rows count. difference: how
    much better the candidate is, in the metric's unit. low, high: its interval of 90 %, so each end is a one-sided
    bound of 95 %; None where these rows do not bound it. p: how likely a candidate that is no better looks this good.
    refused: whether this comparison alone speaks against it.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    split: str
    against: int
    role: Literal["champion", "best"]
    metric: str
    slice: str | None = None
    rows: int
    candidate: float
    other: float
    difference: float
    low: float | None
    high: float | None
    p: float
    test: Literal["McNemar", "bootstrap", "betting", "asymptotic"]
    refused: bool = False


class Verdict(BaseModel):
    """reasons: why the version must not serve; none when it may. figures: of the version alone, such as its latency and
    its calibration error, by name. best: by split, the version that did best on it so far, should this one serve.
    after: the newest change of champion when it was judged, by its number in `promotions`, 0 before the first; a later
    one overtakes the verdict. None where no champion was looked at."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    version: int
    reasons: list[str] = []
    comparisons: list[Comparison] = []
    figures: dict[str, float] = {}
    best: dict[str, int] = {}
    after: int | None = None
