"""Backfill: the events of a span are scored again by the version that serves now, beside live traffic.

1. The span's offsets are found by the broker's time. What lies before the horizon is left to the batch view, which a
   recomputation scores again.
2. Chosen are the events whose real-time row an other version made. Those without a row stay without: they were refused
   or withdrawn, are copies, or the stream has not come to them yet.
3. A few at a time are scored as the stream scores; their predictions go to `<application>.predictions`, marked as
   `replayed`, and the broker has stored them before the next few. What is refused now keeps the row that it has.
4. The views put each in the place of the row at its position, so that none is added.
It works for a share of the time, for live events want the same model service. Done again, or after it was killed, it
chooses what is left.
"""

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, Engine, and_, func, select

from deeplambda.adapters.kafka import Publisher, consumer, end_offsets, kafka_errors
from deeplambda.adapters.kafka_ranges import RangeReader
from deeplambda.adapters.mysql import mysql_errors
from deeplambda.config import Settings
from deeplambda.errors import Conflict
from deeplambda.records import topics
from deeplambda.state import registry
from deeplambda.state.horizon_store import read_horizon
from deeplambda.state.tables import REALTIME_PREDICTIONS
from speed_layer.stream.scoring import Scorer

AT_ONCE = 50
"""Events that are scored in one go: live ones wait no longer for them than for one another."""


@dataclass(frozen=True, kw_only=True)
class Backfill:
    """What is to be scored again. champion: by which version. ranges: by partition, the first offset and the one after
    the last, past the horizon. by_version: events that other versions have scored. done: events of the champion's.
    in_batch_view: offsets of the span that the horizon has absorbed."""

    application: str
    champion: int
    ranges: Mapping[int, tuple[int, int]]
    by_version: Mapping[int, int]
    done: int
    in_batch_view: int

    @property
    def events(self) -> int:
        """How many are to be scored again."""
        return sum(self.by_version.values())


def planned(settings: Settings, engine: Engine, application: str, since: datetime, until: datetime | None) -> Backfill:
    """What a backfill of a span has to do. until: the first moment that is not of it. Raises: Conflict, NotReady."""
    span = _span(settings, application, since, until)
    with mysql_errors(), engine.connect() as connection:
        champion = registry.champion(connection, application)
        if champion is None:
            raise Conflict(f"{application} has no champion", f"see 'deeplambda model list {application}'")
        absorbed = read_horizon(connection, application).offsets
        ranges = {partition: (max(first, absorbed.get(partition, 0)), end) for partition, (first, end) in span.items()}
        found = _by_version(connection, application, ranges)
    return Backfill(
        application=application,
        champion=champion.version,
        ranges=ranges,
        by_version={version: events for version, events in found.items() if version != champion.version},
        done=found[champion.version],
        in_batch_view=sum(max(0, min(end, absorbed.get(p, 0)) - first) for p, (first, end) in span.items()),
    )


def score_again(settings: Settings, engine: Engine, backfill: Backfill, share: float) -> Iterator[tuple[int, int]]:
    """Do it; after each few events, how many were looked at and how many of them have a new prediction.

    share: of the time that it works, above 0 and at most 1. Raises: NotReady; run again, it goes on.
    """
    application = backfill.application
    scorer = Scorer(settings, application, replays=True)
    with (
        closing(RangeReader(settings, topics.events(application))) as reader,
        Publisher(settings) as publisher,
    ):
        for partition, offsets in _chosen(engine, backfill):
            started_s = time.monotonic()
            span = {partition: (offsets[0], offsets[-1] + 1)}
            wanted = set(offsets)
            rows = [row for chunk in reader.chunks(span) for row in chunk if row["offset"] in wanted]
            made = [each for each in scorer.records(rows) if each[0] == topics.predictions(application)]
            for topic, key, value in made:
                publisher.send_record(topic, key, value)
            publisher.flush()
            yield len(offsets), len(made)
            time.sleep((time.monotonic() - started_s) * (1 / share - 1))


def _span(settings: Settings, application: str, since: datetime, until: datetime | None) -> dict[int, tuple[int, int]]:
    """By partition, the first offset of the span that Kafka still has, and the one after the last."""
    topic = topics.events(application)
    ends = end_offsets(settings, topic)
    with kafka_errors(settings), closing(consumer(settings, topic)) as reader:

        def at(moment: datetime) -> dict[int, int]:
            known = [each for each in reader.assignment() if each.partition in ends]  # others were added just now
            at_ms = max(0, int(moment.timestamp() * 1000))
            return {
                each.partition: found.offset if found else ends[each.partition]
                for each, found in reader.offsets_for_times(dict.fromkeys(known, at_ms)).items()
            }

        firsts, lasts = at(since), ends if until is None else at(until)
    return {partition: (first, lasts[partition]) for partition, first in firsts.items()}


def _by_version(connection: Connection, application: str, ranges: Mapping[int, tuple[int, int]]) -> Counter[int]:
    found: Counter[int] = Counter()
    version = REALTIME_PREDICTIONS.c.model_version
    for partition, (first, end) in ranges.items():
        counts = select(version, func.count().label("events")).group_by(version)
        query = counts.where(_within(application, partition, first, end))
        found.update({row.model_version: row.events for row in connection.execute(query)})
    return found


def _chosen(engine: Engine, backfill: Backfill) -> Iterator[tuple[int, list[int]]]:
    """Partition and ascending offsets of the events, a few at a time."""
    offset, version = REALTIME_PREDICTIONS.c.kafka_offset, REALTIME_PREDICTIONS.c.model_version
    for partition, (first, end) in backfill.ranges.items():
        at = first
        while True:
            there = _within(backfill.application, partition, at, end) & (version != backfill.champion)
            with mysql_errors(), engine.connect() as connection:
                offsets = list(connection.scalars(select(offset).where(there).order_by(offset).limit(AT_ONCE)))
            if not offsets:
                break
            yield partition, offsets
            at = offsets[-1] + 1


def _within(application: str, partition: int, first: int, end: int) -> ColumnElement[bool]:
    live = REALTIME_PREDICTIONS.c
    return and_(
        live.application == application,
        live.kafka_partition == partition,
        live.kafka_offset >= first,
        live.kafka_offset < end,
    )
