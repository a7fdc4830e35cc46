"""`python -m benchmarks scale [SECTION …]`: the sections that docs/scale.md tells of, all of them by default."""

import argparse
from collections.abc import Callable, Mapping
from contextlib import nullcontext

from rich.console import Console

from benchmarks import recomputation, upkeep
from benchmarks.own_stack import STORES, own_stack
from benchmarks.ratio import Ratio, table
from benchmarks.scale.cluster import two_trainers, two_workers
from benchmarks.scale.growth import growth
from benchmarks.scale.loading import loading
from benchmarks.scale.scoring import scoring, sql_inference

Section = Callable[[argparse.Namespace], list[Ratio]]


SECTIONS: Mapping[str, tuple[bool, Section]] = {
    "tabular": (False, lambda chosen: growth("rows", chosen.rows, chosen.factor)),
    "images": (False, lambda chosen: growth("pictures", chosen.images, chosen.factor)),
    "cluster": (False, lambda chosen: two_workers(chosen.cluster_rows)),
    "training": (False, lambda chosen: two_trainers(chosen.epochs)),
    "loading": (False, lambda chosen: loading(chosen.rows)),
    "scoring": (True, lambda chosen: scoring(chosen.events)),
    "sql": (True, lambda chosen: sql_inference(chosen.events)),
    "day": (True, lambda chosen: [upkeep.measure(early=chosen.commits // 10, late=chosen.commits)]),
    "recompute": (True, lambda chosen: [recomputation.measure()]),
}
"""By name, whether it needs a stack with a champion of digits, and what measures it."""


def main(arguments: list[str]) -> int:
    """Measure and print a table. 1 when a section could not be measured."""
    chosen = _parsed(arguments)
    console, ratios, unmeasured = Console(), list[Ratio](), dict[str, str]()
    for digits in (False, True):
        names = [name for name in chosen.sections or SECTIONS if SECTIONS[name][0] is digits]
        parts = () if "sql" in names else STORES
        with own_stack(*parts) if digits and names else nullcontext():
            for name in names:
                try:
                    found = SECTIONS[name][1](chosen)
                except Exception as exc:  # one section's trouble should not hide the others' ratios
                    console.print_exception()
                    unmeasured[name] = f"{type(exc).__name__}: {exc}"
                else:
                    ratios += found
                    # At once, for what follows takes long, or may fail.
                    console.print(*map(str, found), sep="\n", highlight=False, soft_wrap=True)
    console.print(table(ratios))
    for name, reason in unmeasured.items():
        console.print(f"[red]{name} was not measured[/red]: {reason}", highlight=False)
    return 1 if unmeasured else 0


def _parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks scale", description=__doc__)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}")
    for option, value, meaning in (
        ("--rows", 2_000_000, "generated rows of the smaller size, and those of loading"),
        ("--images", 20_000, "generated images of the smaller size"),
        ("--factor", 10, "how many times as much the larger size is"),
        ("--cluster-rows", 2_000_000, "generated rows for the cluster"),
        ("--epochs", 2, "epochs of training in one process and in two"),
        ("--events", 60_000, "events to score in bulk"),
        ("--commits", 5_000, "commits of the archive; it is compared with a tenth of them"),
    ):
        parser.add_argument(option, type=int, default=value, help=f"{meaning} (default: {value:,})")
    chosen = parser.parse_args(arguments)
    if few := [name for name, value in vars(chosen).items() if isinstance(value, int) and value < 1]:
        parser.error(f"--{few[0].replace('_', '-')} takes a number from 1 on")
    if unknown := [name for name in chosen.sections if name not in SECTIONS]:
        parser.error(f"no section {unknown[0]!r}; there are {', '.join(SECTIONS)}")
    least = 10 * upkeep.UPKEEP_EVERY
    if chosen.commits < least or chosen.commits % least:
        parser.error(f"--commits takes multiples of {least:,}, so that upkeep has run at a tenth of them")
    return chosen
