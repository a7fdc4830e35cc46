"""Labels for rows that have none: made-up events are tried with labels that the objective accepts."""

from typing import Any

from deeplambda.application import Application
from deeplambda.testing.sample import Row


def labels_for(application: Application, rows: list[Row]) -> list[Any]:
    """The rows' labels; for rows without one, the classes in turn, or numbers within the objective's bounds."""
    choices = label_choices(application)
    return [row.label if row.label is not None else choices[n % len(choices)] for n, row in enumerate(rows)]


def label_choices(application: Application) -> list[Any]:
    """Labels that the objective accepts; what it is asked by is what the platform's own objectives have."""
    objective = application.objective
    if classes := getattr(objective, "classes", None):
        return list(classes)
    if labels := getattr(objective, "labels", None):
        return [",".join(labels[:count]) for count in range(len(labels) + 1)]
    low, high = getattr(objective, "minimum", None), getattr(objective, "maximum", None)
    low = low if low is not None else (high - 1 if high is not None else 0.0)
    high = high if high is not None else low + 1
    return [low + (high - low) * share for share in (0.0, 1.0, 0.25, 0.75)]
