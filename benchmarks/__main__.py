"""`python -m benchmarks`: run every benchmark, print one table of ratios; `python -m benchmarks NAME …` runs some.

Exit status 1 when a benchmark could not be measured. A missed aim is a result like any other.
"""

import importlib
import sys
from importlib.util import find_spec

from rich.console import Console
from rich.table import Table

from benchmarks.own_stack import own_stack
from benchmarks.ratio import Ratio

MODULES = ("stream_throughput", "stream_latency", "model_service", "training", "recomputation", "horizon", "upkeep")
"""Each has NAME, AIM and `measure() -> Ratio`."""


def main() -> int:
    console = Console()
    chosen = sys.argv[1:] or MODULES
    if unknown := [name for name in chosen if name not in MODULES]:
        console.print(f"no benchmark {unknown[0]!r}; there are {', '.join(MODULES)}")
        return 2
    ratios: list[Ratio] = []
    unmeasured: dict[str, str] = {}
    with own_stack():
        for name in chosen:
            try:
                with console.status(f"measuring {name}"):
                    ratios.append(_measured(name))
            except Exception as exc:  # one benchmark's trouble should not hide the others' ratios
                unmeasured[name] = f"{type(exc).__name__}: {exc}"
    console.print(_table(ratios))
    for name, reason in unmeasured.items():
        console.print(f"[red]{name} was not measured[/red]: {reason}", highlight=False)
    return 1 if unmeasured else 0


def _measured(name: str) -> Ratio:
    if find_spec(f"benchmarks.{name}") is None:
        raise LookupError(f"there is no benchmarks/{name}.py")
    ratio: Ratio = importlib.import_module(f"benchmarks.{name}").measure()
    return ratio


def _table(ratios: list[Ratio]) -> Table:
    table = Table("benchmark", "baseline beside it", "ratio", "aim", "", "measured", "baseline", "unit")
    for column in table.columns[2:]:
        column.justify = "right"
    for ratio in ratios:
        table.add_row(
            ratio.name,
            ratio.baseline_name,
            f"{ratio.value:.2f}",
            f"{'≥' if ratio.higher_is_better else '≤'} {ratio.aim:g}",
            "[green]reached[/green]" if ratio.reached else "[red]missed[/red]",
            f"{ratio.measured:,.4g}",
            f"{ratio.baseline:,.4g}",
            ratio.unit,
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
