"""What a tuning's trials draw, none of them twice."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import batch_layer.ray_environment  # noqa: F401

# isort: split
import optuna
from pydantic_core import to_json
from ray import tune as ray_tune
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from batch_layer.trainer import all_hyperparameters
from batch_layer.trial_worker import METRIC
from batch_layer.trials import Trial, key_of
from deeplambda.application import Application, Choice, LogUniform
from deeplambda.errors import BadInput

RANDOM_TRIALS = 5
"""Drawn at random before the estimator has enough to go by."""
_DRAWN_AGAIN = 20
"""So often a draw that was made before is made again, before one that was not is taken whatever the estimator says."""


def search_space(application: Application, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """What trials draw from, as Ray has it: the application's, without what is set. Raises: BadInput."""
    space = {name: values for name, values in application.search_space.items() if name not in overrides}
    if not space:
        raise BadInput(f"{application.name} has nothing to search", "give it a search_space, or --set less")
    if "epochs" in space:
        raise BadInput("epochs is in the search space", "leave it out: ASHA decides how long a trial trains")
    all_hyperparameters(application, {name: _some(values) for name, values in space.items()})
    return {
        name: ray_tune.choice(list(values.values))
        if isinstance(values, Choice)
        else ray_tune.loguniform(values.low, values.high)
        for name, values in space.items()
    }


def _some(values: Choice | LogUniform) -> Any:
    return values.values[0] if isinstance(values, Choice) else values.low


def choices_of(application: Application, space: Mapping[str, Any]) -> dict[str, list[Any]] | None:
    """Of each name in the search space, its values, each once; None where one of them is drawn from numbers."""
    found = {}
    for name in space:
        there = application.search_space[name]
        if isinstance(there, LogUniform) and there.low < there.high:
            return None
        values = there.values if isinstance(there, Choice) else (float(there.low),)
        found[name] = list({to_json(value): value for value in values}.values())
    return found


def searcher(
    application: Application, space: dict[str, Any], lower: bool, fixed: Mapping[str, Any], known: list[Trial]
) -> OptunaSearch:
    """Draws what is known first. Its seed counts that in, or it would draw the same once more."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    numbers = {name for name in space if isinstance(application.search_space[name], LogUniform)}
    own = {name: float(fixed[name]) if name in numbers else fixed[name] for name in space}
    points = [_as_declared(application, trial.drawn) for trial in known]
    if not points and _draws(application, own):
        points = [own]
    return _EachOnce(
        OptunaSearch.convert_search_space(space),
        choices_of(application, space),
        metric=METRIC,
        mode=mode_of(lower),
        points_to_evaluate=points,
        sampler=optuna.samplers.TPESampler(n_startup_trials=RANDOM_TRIALS, seed=fixed["seed"] + len(known)),
    )


def mode_of(lower: bool) -> str:
    """Of the deciding metric, as Ray has it."""
    return "min" if lower else "max"


def _as_declared(application: Application, drawn: Mapping[str, Any]) -> dict[str, Any]:
    """The values as the search space has them: JSON knows no tuples."""

    def declared(name: str, value: Any) -> Any:
        there = application.search_space[name]
        values = there.values if isinstance(there, Choice) else (value,)
        return next((each for each in values if to_json(each) == to_json(value)), value)

    return {name: declared(name, value) for name, value in drawn.items()}


def _draws(application: Application, values: Mapping[str, Any]) -> bool:
    """Whether the search space has these values in it."""
    return all(
        values[name] in there.values if isinstance(there, Choice) else there.low <= values[name] <= there.high
        for name, there in application.search_space.items()
        if name in values
    )


class _EachOnce(OptunaSearch):  # type: ignore[misc]
    """Makes no draw twice: a trial is known by its draw, and another one would train the same once more.

    choices: by name, where the search space has no other values.
    """

    def __init__(self, space: dict[str, Any], choices: Mapping[str, Sequence[Any]] | None, **others: Any) -> None:
        super().__init__(space, **others)
        self._choices, self._drawn = choices, set[str]()

    def suggest(self, trial_id: str) -> Any:
        for _ in range(_DRAWN_AGAIN):
            drawn = super().suggest(trial_id)
            if self._take(drawn):
                return drawn
            self._ot_study.tell(self._ot_trials.pop(trial_id), state=optuna.trial.TrialState.FAIL)  # tells it nothing
        names, values = (self._choices or {}).keys(), (self._choices or {}).values()
        left = (dict(zip(names, each, strict=True)) for each in product(*values))
        if self._choices is None or (drawn := next(filter(self._take, left), None)) is None:
            return Searcher.FINISHED
        self._ot_study.enqueue_trial(drawn)
        return super().suggest(trial_id)

    def _take(self, drawn: Mapping[str, Any]) -> bool:
        """Whether it is new; it is not, from now on."""
        key = key_of(drawn)
        new = key not in self._drawn
        self._drawn.add(key)
        return new
