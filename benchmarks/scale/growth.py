"""Sections `tabular` and `images`: ten times the rows in ten times the time, and in the same memory."""

import sys

from benchmarks.ratio import Ratio
from benchmarks.scale.stages import STAGES, stages_of

TIME_AIM, MEMORY_AIM = 10.5, 1.2
"""For ten times the rows; the first in proportion for another factor."""
_MEBIBYTE = 2**20


def growth(application: str, rows: int, factor: int) -> list[Ratio]:
    """Time of each stage and of all, and memory of each kind of process, at `factor` times `rows` against `rows`."""
    small = stages_of(application, rows)
    seconds = sum(stage.seconds for stage in small.values())
    print(f"{factor * rows:,} rows will take about {factor * seconds / 60:.0f} min", file=sys.stderr, flush=True)
    large = stages_of(application, factor * rows)
    baseline = f"{rows:,} rows"
    measured = f"{factor * rows:,} rows of {application}"
    ratios = [
        Ratio(
            name=f"{measured}: {name}",
            value=late / early,
            baseline_name=baseline,
            baseline=early,
            measured=late,
            unit="s",
            aim=TIME_AIM * factor / 10,
            higher_is_better=False,
        )
        for name, early, late in [
            *((stage, small[stage].seconds, large[stage].seconds) for stage in STAGES),
            ("all stages", seconds, sum(stage.seconds for stage in large.values())),
        ]
    ]
    return ratios + [
        Ratio(
            name=f"{measured}: {stage}'s {role}",
            value=large[stage].peak_bytes[role] / peak,
            baseline_name=baseline,
            baseline=peak / _MEBIBYTE,
            measured=large[stage].peak_bytes[role] / _MEBIBYTE,
            unit="MiB",
            aim=MEMORY_AIM,
            higher_is_better=False,
        )
        for stage in STAGES
        for role, peak in sorted(small[stage].peak_bytes.items())
        if role in large[stage].peak_bytes
    ]
