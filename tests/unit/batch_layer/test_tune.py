"""What trials draw, and which rows they are compared on."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pytest
from ray.tune.search import Searcher

from batch_layer.trials import Trial, key_of
from batch_layer.tune import _choices, _searcher, _with_room, search_space
from deeplambda.application import Application, Choice, Event, LogUniform
from deeplambda.objective import Classification
from deeplambda.records.lifecycle import PartitionPrepared
from deeplambda.splits import TRAIN, VALIDATION
from tests.unit.batch_layer.test_feed import prepared

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
    searcher = _searcher(application, search_space(application, overrides), False, fixed, list(known))
    found = []
    for trial in map(str, range(rounds)):
        found.append(searcher.suggest(trial))
        if found[-1] != Searcher.FINISHED:
            searcher.on_trial_complete(trial, {"validation": found[-1]["hidden"], "training_iteration": 1})
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
    assert _choices(Coin(), search_space(Coin(), {})) is None
    assert _choices(Coin(), search_space(Coin(), OF_CHOICES)) == {"hidden": [8, 16, 32], "sizes": [(1, 2), (3,)]}


def test_a_number_of_one_value_is_one_draw_whichever_type_the_application_wrote() -> None:
    class Fixed(Coin):
        hyperparameters = DEFAULTS | {"rate": 1}
        search_space = {"hidden": Choice((8, 16)), "rate": LogUniform(1, 1)}  # noqa: RUF012

        def build_model(self, *, hidden: int, rate: float) -> Any: ...

    fixed = dict(Fixed.hyperparameters) | {"seed": 0}
    searcher = _searcher(Fixed(), search_space(Fixed(), {}), False, fixed, [])
    found = [searcher.suggest(str(trial)) for trial in range(3)]
    assert [each if each == Searcher.FINISHED else each["hidden"] for each in found] == [8, 16, Searcher.FINISHED]


def shards(split: str, rows: int) -> list[PartitionPrepared]:
    """Of 100 bytes each."""
    return [prepared(split, n, partitions=rows) for n in range(rows)]


@pytest.mark.parametrize(
    ("training", "validation", "room", "wanted"),
    [
        (10, 2, 1_200, (10, 2)),
        (2, 10, 1_200, (2, 10)),
        (100, 20, 1_200, (10, 2)),
        (9, 20, 1_200, (9, 3)),
        (100, 20, 500, (4, 1)),
        (100, 0, 500, (5, 0)),
        (100, 20, 150, (1, 0)),
    ],
)
def test_the_validation_split_has_its_share_of_the_room_before_the_training_rows(
    training: int, validation: int, room: int, wanted: tuple[int, int]
) -> None:
    found = _with_room([*shards(TRAIN, training), *shards("test", 5), *shards(VALIDATION, validation)], room)
    assert (len(found[TRAIN]), len(found[VALIDATION])) == wanted
