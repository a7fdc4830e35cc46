"""The horizon: per Kafka partition, the first offset that the batch view has not absorbed.

It is the only definition of the cut between the two views. `all_predictions` is, at every moment,

    the batch view, as of the horizon's own Iceberg snapshot
    ∪ the real-time rows at or past the horizon whose event the batch view does not hold

Both halves are pinned by literals in one view definition, so a query sees either the old cut or the new one and never
half of each. An event sent twice, once on each side of the cut, is the reason for the second condition.

A row is held against its partition's offset by one look-up in a list of all of them, however many there are: a term for
each of 1,000 partitions would take MySQL half a minute for a million rows.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from math import ceil

import pyarrow as pa

from deeplambda.errors import BadInput
from deeplambda.records.predictions import VIEW_SCHEMA

MOST_PARTITIONS = 4096
"""Of a topic. The metastore cuts a view's text off at 64 KiB, and each partition's offset stands in it."""
_RANGES = 4
"""Of partitions, each with its lowest offset: so many terms MySQL evaluates for a row before Spark gets to see it."""


@dataclass(frozen=True, kw_only=True)
class Horizon:
    """snapshot: Iceberg snapshot id of `lake.<application>.predictions`, None before the first batch view.

    offsets: by partition, the first offset not absorbed; a partition that is missing has absorbed nothing.
    Raises: BadInput for more partitions than the union view can hold.
    """

    snapshot: int | None = None
    offsets: Mapping[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what would be cut off."""
        if max(self.offsets, default=0) >= MOST_PARTITIONS:
            raise BadInput(
                f"partition {max(self.offsets)} is past the {MOST_PARTITIONS:,} partitions that a horizon may have",
                "make the topic anew with fewer, and leave DEEPLAMBDA_KAFKA_PARTITIONS below that",
            )

    def absorbed(self, partition: int, offset: int) -> bool:
        """True when the batch view has taken in the event at this position."""
        return offset < self.offsets.get(partition, 0)

    def past_mysql(self) -> str:
        """Condition in MySQL that is true of the rows at or past the horizon."""
        if not self.offsets:
            return "TRUE"
        ends = ", ".join(map(str, self._by_partition()))
        return f"kafka_offset >= COALESCE(CAST(ELT(kafka_partition + 1, {ends}) AS SIGNED), 0)"

    def past_spark(self) -> str:
        """The same in Spark SQL; what stands before the look-up is all that Spark can have MySQL filter by."""
        if not self.offsets:
            return "TRUE"
        ends = self._by_partition()
        width = ceil(len(ends) / _RANGES)
        ranges = {first: ends[first : first + width] for first in range(0, len(ends), width)}
        coarse = [
            f"NOT (kafka_partition BETWEEN {first} AND {first + len(found) - 1} AND kafka_offset < {min(found)})"
            for first, found in ranges.items()
        ]
        exact = f"kafka_offset >= coalesce(get(array({', '.join(map(str, ends))}), kafka_partition), 0)"
        return " AND ".join([*coarse, exact])

    def _by_partition(self) -> list[int]:
        return [self.offsets.get(partition, 0) for partition in range(max(self.offsets) + 1)]


def all_predictions_sql(application: str, horizon: Horizon, realtime_table: str, lacking: Collection[str] = ()) -> str:
    """Spark SQL of the union of both views at `horizon`.

    realtime_table: how Spark names MySQL's `realtime_predictions`, for example `mysql.deeplambda.realtime_predictions`.
    lacking: columns that the horizon's snapshot does not have, for it was written before they were added.
    """
    columns = ", ".join(VIEW_SCHEMA.names)
    realtime = (
        f"SELECT {columns}, 'realtime' AS view FROM {realtime_table} AS live "
        f"WHERE application = '{application}' AND {horizon.past_spark()}"
    )
    if horizon.snapshot is None:
        return realtime
    batch = f"lake.{application}.predictions VERSION AS OF {horizon.snapshot}"
    return (
        f"SELECT {batch_columns(lacking)}, 'batch' AS view FROM {batch} UNION ALL {realtime} "
        f"AND NOT EXISTS (SELECT 1 FROM {batch} AS absorbed WHERE absorbed.event_id = live.event_id)"
    )


def batch_columns(lacking: Collection[str] = ()) -> str:
    """The columns of a batch view in Spark SQL; NULL for those that its snapshot lacks."""
    types = {field.name: "DOUBLE" if field.type == pa.float64() else "STRING" for field in VIEW_SCHEMA}
    return ", ".join(
        f"CAST(NULL AS {types[name]}) AS {name}" if name in lacking else name for name in VIEW_SCHEMA.names
    )
