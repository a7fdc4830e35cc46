"""Which events a canary answers: a fixed share by the event's id, the same wherever it is asked."""

import pytest

from deeplambda.records.experiments import Canary, point

IDS = [f"event-{n}" for n in range(20_000)]


@pytest.mark.parametrize("share", [0.01, 0.05, 0.5])
def test_a_canary_takes_its_share_of_the_events(share: float) -> None:
    canary = Canary(experiment=1, version=2, share=share)
    taken = sum(map(canary.takes, IDS))
    assert taken / len(IDS) == pytest.approx(share, abs=4 * (share * (1 - share) / len(IDS)) ** 0.5)


def test_where_an_event_stands_never_changes() -> None:
    assert f"{point(3, 'event-7'):.6f}" == "0.016532", (
        "or a stream and a service of two releases would route differently"
    )


def test_a_larger_share_keeps_the_events_of_the_smaller_one() -> None:
    small, large = (Canary(experiment=1, version=2, share=share) for share in (0.05, 0.2))
    assert {each for each in IDS if small.takes(each)} < {each for each in IDS if large.takes(each)}


def test_the_next_experiment_takes_other_events() -> None:
    first, second = ({each for each in IDS if Canary(experiment=n, version=2, share=0.1).takes(each)} for n in (1, 2))
    assert len(first & second) < 0.2 * len(first)


def test_a_header_says_all_that_routing_needs() -> None:
    canary = Canary(experiment=3, version=7, share=0.05)
    assert Canary.of_header(canary.header) == canary


@pytest.mark.parametrize("header", [None, "", "3 7", "3 7 much", "a b c d"])
def test_a_header_that_says_nothing_is_no_canary(header: str | None) -> None:
    assert Canary.of_header(header) is None
