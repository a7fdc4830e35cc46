"""Where an event goes that has a label, by the application's rule and no other word."""

from datetime import UTC, datetime
from typing import Any

import pytest

from batch_layer.labelled_events import LabelRefusal, SplitOfEvents, _text_or_refusal, field_of
from deeplambda.application import Application, Event
from deeplambda.objective import Classification, Regression
from deeplambda.sources import AnySource, ByGroup, ByHash, BySource, ByTime, Csv, Source
from deeplambda.splits import Splits

AUGUST = ByTime("paid", train=("2018-07-25", "2018-08-01"), test=("2018-08-08", "2018-08-15"))


class Paid(Event):
    paid_at: datetime
    customer: str | None


def split_of(splits: Splits, *sources: AnySource, **changes: Any) -> str | None:
    class Tested(Application):
        name, event = "tested", Paid
        objective, metrics = Classification("ab"), ("accuracy",)

        def transform(self, batch: Any) -> Any: ...
        def build_model(self, **hyperparameters: Any) -> Any: ...

    Tested.splits, Tested.sources = splits, sources or (Csv("a.csv", columns={"paid_at": "paid"}),)
    values = {"event_id": "e", "occurred_at": datetime.now(UTC), "paid_at": datetime(2018, 7, 26), "customer": "c"}
    return SplitOfEvents(Tested())(Paid.model_validate(values | changes))


def test_a_rule_that_names_events_says_where_they_go() -> None:
    drawn = [split_of(ByHash(train=0.5, test=0.5), event_id=str(n)) for n in range(200)]
    assert 60 < drawn.count("test") < 140
    assert split_of(ByHash(train=0.5, test=0.5), event_id="7") == split_of(ByHash(train=0.5, test=0.5), event_id="7")
    by_customer = [split_of(ByGroup("customer", train=0.5, test=0.5), customer=str(n)) for n in range(200)]
    assert 60 < by_customer.count("test") < 140


def test_times_are_read_from_the_field_that_the_sources_fill_from_the_rules_column() -> None:
    assert split_of(AUGUST) == "train"
    assert split_of(AUGUST, paid_at=datetime(2018, 8, 9)) == "test"
    assert field_of(_WithTimes(), "TIME") == "occurred_at"
    assert field_of(_WithTimes(), "amount") is None


class _WithTimes(Application):
    name, event, sources = "tested", Paid, (Csv("a.csv", occurred_at="TIME"), Csv("b.csv", occurred_at="TIME"))

    def transform(self, batch: Any) -> Any: ...
    def build_model(self, **hyperparameters: Any) -> Any: ...


@pytest.mark.parametrize(
    "given",
    [
        (BySource(), Source(objects=("a",), split="train"), Source(objects=("b",), split="test")),
        (ByHash(train=0.0, test=1.0), Csv("a.csv", split="train"), Csv("b.csv", split="test")),
        (ByGroup("shop", train=0.0, test=1.0),),
    ],
)
def test_where_the_rule_has_no_word_an_event_is_learned_from(given: tuple[Any, ...]) -> None:
    assert split_of(*given) == "train"
    assert split_of(AUGUST, paid_at=datetime(2026, 1, 1)) == "train"


def test_an_event_that_lacks_what_the_rule_goes_by_has_no_split() -> None:
    assert split_of(ByGroup("customer"), customer=None) is None


@pytest.mark.parametrize(
    ("objective", "label", "text"),
    [
        (Classification("ab"), "a", "a"),
        (Classification(("1", "10")), "10", "10"),
        (Regression(), "1.50", "1.5"),
    ],
)
def test_a_label_is_kept_as_an_examples_would_be(objective: Any, label: str, text: str) -> None:
    assert _text_or_refusal(_judging(objective), label) == (text, None)


@pytest.mark.parametrize(
    ("objective", "label"),
    [
        (Classification("ab"), "NaN"),
        (Classification("ab"), "c"),
        (Classification("ab"), '{"class": "a"}'),
        (Regression(), "NaN"),
        (Regression(), "Infinity"),
        (Regression(), "many"),
    ],
)
def test_a_label_of_no_class_or_number_is_refused(objective: Any, label: str) -> None:
    assert _text_or_refusal(_judging(objective), label) == (None, LabelRefusal.WRONG)
    assert _text_or_refusal(_judging(objective), None) == (None, LabelRefusal.MISSING)


def _judging(objective: Any) -> Application:
    application = _WithTimes()
    vars(application)["objective"] = objective
    return application
