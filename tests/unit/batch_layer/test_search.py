"""What trials draw."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pytest
from ray.tune.search import Searcher

from batch_layer.search import choices_of, search_space, searcher
from batch_layer.trials import Trial, key_of
from deeplambda.application import Application, Choice, Event, LogUniform
from deeplambda.objective import Classification

pytestmark = pytest.mark.filterwarnings("ignore:Choices for a categorical")  # tuples; Optuna stores nothing here
OWN = {"hidden": 8, "sizes": (1, 2)}
DEFAULTS = {"epochs": 1, "batch_size": 1, "learning_rate": 0.1, "weight_decay": 0, **OWN, "rate": 0.1}


class Coin(Application):
    name = "coin"
    event = Event
    sources = ()
    objective = Classification(("head", "tail"))
    metrics = ("accuracy",)
    hyperparameters: Any = DEFAULTS
    search_space: Any = {  # noqa: RUF012
        "hidden": Choice((8, 16, 32, 8)),
        "sizes": Choice(((1, 2), (3,))),
        "rate": LogUniform(0.01, 1),
    }

    def transform(self, batch: pa.RecordBatch) -> Any: ...

    def build_model(self, *, hidden: int, sizes: tuple[int, ...], rate: float) -> Any: ...


OF_CHOICES = {"rate": 0.5}
"""What leaves a search space of six draws."""


def drawn(rounds: int, overrides: dict[str, Any], known: Sequence[Trial] = (), seed: int = 0) -> list[Any]:
    """So many draws, each of which reaches the better metric the larger `hidden` is."""
    application = Coin()
    fixed = dict(application.hyperparameters) | overrides | {"seed": seed}
    made = searcher(application, search_space(application, overrides), False, fixed, list(known))
    found = []
    for trial in map(str, range(rounds)):
        found.append(made.suggest(trial))
        if found[-1] != Searcher.FINISHED:
            made.on_trial_complete(trial, {"validation": found[-1]["hidden"], "training_iteration": 1})
    return found


@pytest.mark.parametrize("seed", range(5))
def test_each_draw_of_a_space_of_choices_is_made_once_and_then_there_are_no_more(seed: int) -> None:
    *found, after = drawn(7, OF_CHOICES, seed=seed)
    assert found[0] == OWN, "the application's own"
    assert len({key_of(each) for each in found}) == 6
    assert after == Searcher.FINISHED


def test_what_is_known_comes_first_and_is_not_drawn_again() -> None:
    known = [Trial(drawn={"hidden": 16, "sizes": [3]}), Trial(drawn={"hidden": 32, "sizes": [1, 2]})]
    found = drawn(6, OF_CHOICES, known)
    assert [key_of(each) for each in found[:2]] == [trial.key for trial in known]
    assert len({key_of(each) for each in found}) == 6


def test_numbers_leave_no_bound_on_how_many_draws_there_are() -> None:
    assert len({key_of(each) for each in drawn(12, {})}) == 12
    assert choices_of(Coin(), search_space(Coin(), {})) is None
    assert choices_of(Coin(), search_space(Coin(), OF_CHOICES)) == {"hidden": [8, 16, 32], "sizes": [(1, 2), (3,)]}


def test_a_number_of_one_value_is_one_draw_whichever_type_the_application_wrote() -> None:
    class Fixed(Coin):
        hyperparameters = DEFAULTS | {"rate": 1}
        search_space = {"hidden": Choice((8, 16)), "rate": LogUniform(1, 1)}  # noqa: RUF012

        def build_model(self, *, hidden: int, rate: float) -> Any: ...

    fixed = dict(Fixed.hyperparameters) | {"seed": 0}
    made = searcher(Fixed(), search_space(Fixed(), {}), False, fixed, [])
    found = [made.suggest(str(trial)) for trial in range(3)]
    assert [each if each == Searcher.FINISHED else each["hidden"] for each in found] == [8, 16, Searcher.FINISHED]
