"""The horizon: per Kafka partition, the first offset that the batch view has not absorbed.

It is the only definition of the cut between the two views. `all_predictions` is, at every moment,

    the batch view, as of the horizon's own Iceberg snapshot
    ∪ the real-time rows at or past the horizon whose event the batch view does not hold

Both halves are pinned by literals in one view definition, so a query sees either the old cut or the new one and never
half of each. An event sent twice, once on each side of the cut, is the reason for the second condition.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import pyarrow as pa

from deeplambda.records.predictions import VIEW_SCHEMA


@dataclass(frozen=True, kw_only=True)
class Horizon:
    """snapshot: Iceberg snapshot id of `lake.<application>.predictions`, None before the first batch view.

    offsets: by partition, the first offset not absorbed; a partition that is missing has absorbed nothing.
    """

    snapshot: int | None = None
    offsets: Mapping[int, int] = field(default_factory=dict)

    def absorbed(self, partition: int, offset: int) -> bool:
        """True when the batch view has taken in the event at this position."""
        return offset < self.offsets.get(partition, 0)

    def past_sql(self) -> str:
        """Condition that is true of the rows at or past the horizon; for both MySQL and Spark."""
        return " AND ".join(
            ["TRUE"] + [f"NOT (kafka_partition = {p} AND kafka_offset < {o})" for p, o in sorted(self.offsets.items())]
        )


def all_predictions_sql(application: str, horizon: Horizon, realtime_table: str, lacking: Collection[str] = ()) -> str:
    """Spark SQL of the union of both views at `horizon`.

    realtime_table: how Spark names MySQL's `realtime_predictions`, for example `mysql.deeplambda.realtime_predictions`.
    lacking: columns that the horizon's snapshot does not have, for it was written before they were added.
    """
    columns = ", ".join(VIEW_SCHEMA.names)
    realtime = (
        f"SELECT {columns}, 'realtime' AS view FROM {realtime_table} AS live "
        f"WHERE application = '{application}' AND {horizon.past_sql()}"
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
