"""What a benchmark returns: a measurement over that of a named baseline, both made side by side in one run."""

from collections.abc import Iterable
from dataclasses import dataclass

from rich.table import Table


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """`value` is measured ÷ baseline, or the median of that over rounds. Both are in `unit`."""

    name: str
    value: float
    baseline_name: str
    baseline: float
    measured: float
    unit: str
    aim: float
    higher_is_better: bool

    @property
    def reached(self) -> bool:
        """Whether the ratio is as good as its aim."""
        return self.value >= self.aim if self.higher_is_better else self.value <= self.aim

    def __str__(self) -> str:
        sign, verdict = "≥" if self.higher_is_better else "≤", "reached" if self.reached else "missed"
        return (
            f"{self.name} ÷ {self.baseline_name}: {self.value:.2f} (aim {sign} {self.aim:g}, {verdict}; "
            f"{self.measured:,.4g} and {self.baseline:,.4g} {self.unit})"
        )


def table(ratios: Iterable[Ratio]) -> Table:
    """For people."""
    shown = Table("benchmark", "baseline beside it", "ratio", "aim", "", "measured", "baseline", "unit")
    for column in shown.columns[2:]:
        column.justify = "right"
    for ratio in ratios:
        shown.add_row(
            ratio.name,
            ratio.baseline_name,
            f"{ratio.value:.2f}",
            f"{'≥' if ratio.higher_is_better else '≤'} {ratio.aim:g}",
            "[green]reached[/green]" if ratio.reached else "[red]missed[/red]",
            f"{ratio.measured:,.4g}",
            f"{ratio.baseline:,.4g}",
            ratio.unit,
        )
    return shown
