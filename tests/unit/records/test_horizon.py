"""The union of both views against a slow and obvious oracle: recomputing everything there is.

The SQL text itself is run, by SQLite, which gets what its dialect lacks of it: tables' names and arrays.
"""

import json
import random
import re
import sqlite3
from dataclasses import dataclass, field

import pytest

from deeplambda.errors import BadInput
from deeplambda.records.horizon import MOST_PARTITIONS, Horizon, all_predictions_sql
from deeplambda.records.predictions import VIEW_SCHEMA

PARTITIONS = 3
Row = tuple[str, int, int, str]
"""event_id, kafka_partition, kafka_offset, prediction"""


def sqlite() -> sqlite3.Connection:
    """A database with the functions of the two servers by which a horizon is looked up."""
    database = sqlite3.connect(":memory:")
    database.create_function("array", -1, lambda *values: json.dumps(values))
    database.create_function("get", 2, lambda array, n: dict(enumerate(json.loads(array))).get(n))
    database.create_function("elt", -1, lambda n, *values: dict(enumerate(map(str, values), 1)).get(n))
    return database


def predict(event_id: str) -> str:
    return event_id[-1]


@dataclass
class World:
    """A log with events sent twice, a stream and an archive that follow it at their own pace, and both views."""

    chance: random.Random
    log: list[list[str]] = field(default_factory=lambda: [[] for _ in range(PARTITIONS)])
    scored: list[int] = field(default_factory=lambda: [0] * PARTITIONS)
    realtime: dict[str, Row] = field(default_factory=dict)
    snapshots: list[list[Row]] = field(default_factory=list)
    horizons: list[Horizon] = field(default_factory=lambda: [Horizon()])

    def produce(self) -> None:
        partition = self.chance.randrange(PARTITIONS)
        log = self.log[partition]
        again = log and self.chance.random() < 0.3
        log.append(self.chance.choice(log) if again else f"{partition}-{len(log)}-{self.chance.randrange(10)}")

    def score(self) -> None:
        """The stream takes some records; of an event's copies the first position stays."""
        partition = self.chance.randrange(PARTITIONS)
        start = self.scored[partition]
        end = self.chance.randint(start, len(self.log[partition]))
        for offset in range(start, end):
            event_id = self.log[partition][offset]
            held = self.realtime.get(event_id)
            if not self.horizons[-1].absorbed(partition, offset) and (held is None or offset <= held[2]):
                self.realtime[event_id] = (event_id, partition, offset, predict(event_id))
        self.scored[partition] = end

    def recompute(self) -> None:
        """A new batch view, up to anywhere past the last one: behind the stream or ahead of it.

        Made whole, or of the last one and the first copies, past its horizon, of the events that it does not hold.
        """
        last = self.horizons[-1]
        ends = {
            partition: self.chance.randint(last.offsets.get(partition, 0), len(self.log[partition]))
            for partition in range(PARTITIONS)
        }
        rows = self.first_copies(ends)
        if last.snapshot is not None and self.chance.random() < 0.5:
            rows = {row[0]: row for row in self.snapshots[last.snapshot]}
            for partition, end in ends.items():
                for offset in range(last.offsets.get(partition, 0), end):
                    event_id = self.log[partition][offset]
                    rows.setdefault(event_id, (event_id, partition, offset, predict(event_id)))
        self.snapshots.append(list(rows.values()))
        self.horizons.append(
            Horizon(snapshot=len(self.snapshots) - 1, offsets={p: end for p, end in ends.items() if end})
        )

    def trim(self) -> None:
        """Delete real-time rows before the newest horizon or before an older one, all of them or some."""
        horizon = self.chance.choice(self.horizons)
        for row in list(self.realtime.values()):
            if horizon.absorbed(row[1], row[2]) and self.chance.random() < 0.7:
                del self.realtime[row[0]]

    def first_copies(self, ends: dict[int, int]) -> dict[str, Row]:
        rows: dict[str, Row] = {}
        for partition, end in ends.items():
            for offset, event_id in enumerate(self.log[partition][:end]):
                rows.setdefault(event_id, (event_id, partition, offset, predict(event_id)))
        return rows

    def expected(self) -> list[Row]:
        """Every event that the stream or the archive has got to, recomputed from the log."""
        return sorted(
            self.first_copies(
                {p: max(self.scored[p], self.horizons[-1].offsets.get(p, 0)) for p in range(PARTITIONS)}
            ).values()
        )

    def union(self) -> list[Row]:
        with sqlite() as database:
            columns = ", ".join(VIEW_SCHEMA.names)
            database.execute(f"CREATE TABLE realtime_predictions (application, {columns})")
            self._fill(database, "realtime_predictions", list(self.realtime.values()))
            self._fill(database, "realtime_predictions", [("0-0-1", 0, 10**6, "of another")], application="other")
            for number, rows in enumerate(self.snapshots):
                database.execute(f"CREATE TABLE snapshot_{number} (application, {columns})")
                self._fill(database, f"snapshot_{number}", rows)
            text = all_predictions_sql("digits", self.horizons[-1], "realtime_predictions")
            text = re.sub(r"lake\.digits\.predictions VERSION AS OF (\d+)", r"snapshot_\1", text)
            found = database.execute(f"SELECT event_id, kafka_partition, kafka_offset, prediction FROM ({text})")
            return sorted(found.fetchall())

    @staticmethod
    def _fill(database: sqlite3.Connection, table: str, rows: list[Row], application: str = "digits") -> None:
        database.executemany(
            f"INSERT INTO {table} (application, event_id, kafka_partition, kafka_offset, prediction) "
            f"VALUES ('{application}', ?, ?, ?, ?)",
            rows,
        )


@pytest.mark.parametrize("seed", range(60))
def test_union_of_both_views_equals_recomputing_everything_at_every_moment(seed: int) -> None:
    world = World(random.Random(seed))
    steps = [World.produce] * 12 + [World.score] * 4 + [World.recompute, World.trim]
    for _ in range(200):
        world.chance.choice(steps)(world)
        if world.chance.random() < 0.1:
            assert world.union() == world.expected()
    assert world.union() == world.expected()


def test_absorbed_row_that_the_batch_view_refused_is_not_shown() -> None:
    world = World(random.Random(0), log=[["a-1", "a-2"], [], []])
    world.realtime = {name: (name, 0, offset, predict(name)) for offset, name in enumerate(world.log[0])}
    world.snapshots, world.horizons = [[]], [Horizon(snapshot=0, offsets={0: 1})]
    assert world.union() == [("a-2", 0, 1, "2")]


def test_horizon_of_nothing_shows_every_realtime_row() -> None:
    assert Horizon().past_mysql() == Horizon().past_spark() == "TRUE"
    assert "VERSION AS OF" not in all_predictions_sql("digits", Horizon(), "realtime_predictions")


@pytest.mark.parametrize(
    "offsets", [{0: 10}, {2: 10}, {0: 3, 1: 0, 4: 7}, {p: p * 7 % 10 for p in range(40)}, {0: 2**40, 1: 5}]
)
def test_absorbed_and_its_sql_say_the_same(offsets: dict[int, int]) -> None:
    horizon = Horizon(snapshot=1, offsets=offsets)
    places = [(p, o + step) for p in range(max(offsets) + 2) for o in {*offsets.values(), 1} for step in (-1, 0, 1)]
    with sqlite() as database:
        for place in places:
            past = not horizon.absorbed(*place)
            rows = f"FROM (SELECT {place[0]} AS kafka_partition, {place[1]} AS kafka_offset)"
            for condition in (horizon.past_mysql(), horizon.past_spark()):
                found = database.execute(f"SELECT count(*) {rows} WHERE {condition.replace('SIGNED', 'INTEGER')}")
                assert found.fetchone() == (int(past),), (place, condition)


def test_a_thousand_partitions_are_one_look_up() -> None:
    horizon = Horizon(snapshot=1, offsets={p: 10**9 + p for p in range(1_000)})
    for condition in (horizon.past_mysql(), horizon.past_spark()):
        assert len(re.findall("kafka_partition", condition)) < 20


def test_the_text_of_a_view_has_room_for_the_most_partitions_that_a_horizon_may_have() -> None:
    full = Horizon(snapshot=2**63 - 1, offsets=dict.fromkeys(range(MOST_PARTITIONS), 10**12))
    assert len(all_predictions_sql("a" * 64, full, "mysql.deeplambda.realtime_predictions")) < 65_536
    with pytest.raises(BadInput, match="partition 4096 is past the 4,096 partitions"):
        Horizon(offsets={0: 1, MOST_PARTITIONS: 1})
