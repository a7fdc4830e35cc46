"""What one check leaves to the next."""

from collections import defaultdict
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import pyarrow as pa

from deeplambda.application import Application, payload_batch
from deeplambda.errors import DeepLambdaError
from deeplambda.features import Features
from deeplambda.records.featurizer import Featurizer
from deeplambda.state.card import model_arguments
from deeplambda.testing.findings import Broken, Finding, Report, of_error
from deeplambda.testing.places import Places
from deeplambda.testing.sample import Row, Sample, evenly

TRIED_ROWS = 48


@dataclass
class Work:
    """rows: of the train split, or made up. edges: field, value in short and features of events at a field's edge."""

    places: Places
    report: Report
    application: Application = field(init=False)
    sample: Sample | None = None
    rows: list[Row] = field(default_factory=list)
    featurizer: Featurizer = field(init=False)
    batch: pa.RecordBatch = field(init=False)
    features: Features = field(default_factory=dict)
    edges: list[tuple[str, str, Features]] = field(default_factory=list)

    def find(self, check: str, problem: str, remedy: str, *names: str) -> None:
        """Note a finding, at the line of the first of `names` that the source has."""
        file, line = self.places.of(*names) if names else (self.places.file, None)
        finding = Finding(check=check, problem=problem, remedy=remedy, file=file, line=line)
        if finding not in self.report.findings:
            self.report.findings.append(finding)

    def stop(self, check: str, problem: str, remedy: str, *names: str) -> Broken:
        """As `find`, for what makes the rest of the check meaningless: raise it."""
        file, line = self.places.of(*names) if names else (self.places.file, None)
        return Broken(Finding(check=check, problem=problem, remedy=remedy, file=file, line=line))

    def blame(self, check: str, error: DeepLambdaError, *names: str) -> Broken:
        """An error of the user's code, to be raised."""
        return Broken(of_error(check, error, self.places.of(*names)))


def hyperparameters(application: Application) -> dict[str, Any]:
    """What build_model is called with."""
    return model_arguments(dict(application.hyperparameters))


def tried_rows(work: Work) -> list[Row]:
    """Those that transform and model are tried on: of each label as many, in turn, and within it at even distances."""
    by_label: dict[str | None, list[Row]] = defaultdict(list)
    for row in work.rows:
        by_label[row.label].append(row)
    if len(by_label) > TRIED_ROWS // 2:  # numbers, or the like
        return evenly(work.rows, TRIED_ROWS)
    chosen: list[list[Row]] = []
    room, left = TRIED_ROWS, len(by_label)
    for rows in sorted(by_label.values(), key=len):  # what rare labels leave is for the others
        chosen.append(evenly(rows, room // left))
        room, left = room - len(chosen[-1]), left - 1
    return [row for turn in zip_longest(*chosen) for row in turn if row is not None]


def batch_of(application: Application, rows: list[Row]) -> pa.RecordBatch:
    """The rows' payloads."""
    return payload_batch(application.event, [row.event for row in rows])
