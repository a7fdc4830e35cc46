"""Users share a thing by the time that they use it, whatever their turns cost and however many they wait for."""

from collections import Counter
from collections.abc import Mapping

import pytest

from deeplambda.service.fair_queue import FairQueue

BUSY_S = 10_000.0


def shares(clients: Mapping[str, int], turn_s: Mapping[str, float], away_s: float = 0.0) -> Mapping[str, float]:
    """Each user's share of the time in which one thing is used by clients that ask again when they have had their turn.

    clients: how many each user has. turn_s: how long a turn of each takes. away_s: until a client asks again.
    """
    queue: FairQueue[str] = FairQueue()
    due = [(0.0, user) for user, count in clients.items() for _ in range(count)]
    used: Counter[str] = Counter()
    now = 0.0
    while now < BUSY_S:
        for moment, user in [each for each in due if each[0] <= now]:
            due.remove((moment, user))
            queue.push(user, user)
        if not queue:
            now = min(moment for moment, _ in due)
            continue
        user, _ = queue.pop()
        now += turn_s[user]
        used[user] += turn_s[user]
        queue.used(user, turn_s[user])
        due.append((now + away_s, user))
    return {user: seconds / now for user, seconds in used.items()}


@pytest.mark.parametrize(
    ("clients", "turn_s"),
    [
        ({"few": 2, "many": 64}, {"few": 1, "many": 1}),
        ({"few": 2, "many": 64}, {"few": 1, "many": 20}),
        ({"few": 2, "many": 64}, {"few": 20, "many": 1}),
    ],
    ids=["more of them", "longer ones", "shorter ones"],
)
def test_users_that_always_wait_have_equal_time(clients: dict[str, int], turn_s: dict[str, float]) -> None:
    assert shares(clients, turn_s) == pytest.approx({"few": 0.5, "many": 0.5}, abs=0.01)


def test_what_one_does_not_use_the_others_have() -> None:
    found = shares({"rare": 1, "often": 64, "always": 64}, {"rare": 1, "often": 2, "always": 3}, away_s=99)
    assert found["rare"] == pytest.approx(1 / 100, rel=0.1)
    assert found["often"] == pytest.approx(found["always"], rel=0.05)
    assert sum(found.values()) == pytest.approx(1)


def test_who_was_away_saves_nothing_up_and_owes_nothing() -> None:
    queue: FairQueue[int] = FairQueue()
    for number in range(20):
        queue.push("always", number)
    for _ in range(10):
        queue.used(queue.pop()[0], 5)
    for number in range(20):
        queue.push("back", number)
    order = []
    for _ in range(20):
        user, _ = queue.pop()
        queue.used(user, 5)
        order.append(user)
    assert Counter(order) == {"always": 10, "back": 10}
    assert Counter(order[:6]) == {"always": 3, "back": 3}


def test_who_comes_back_waits_for_one_turn_at_most() -> None:
    queue: FairQueue[int] = FairQueue()
    for number in range(100):
        queue.push("many", number)
    for _ in range(50):
        user, _ = queue.pop()
        queue.push("few", 0)  # while that turn lasts
        queue.used(user, 20)
        assert queue.pop()[0] == "few"
        queue.used("few", 1)


def test_what_one_user_has_waiting_comes_in_its_order() -> None:
    queue: FairQueue[int] = FairQueue()
    for number in range(6):
        queue.push("odd" if number % 2 else "even", number)
    found = [queue.pop() for _ in range(6)]
    assert [item for user, item in found if user == "odd"] == [1, 3, 5]
    assert [item for user, item in found if user == "even"] == [0, 2, 4]
    assert not queue
