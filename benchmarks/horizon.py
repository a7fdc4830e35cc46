"""Seconds of counting a million real-time rows at a horizon of 1,000 partitions, against one of 4.

Half of the rows, which are generated, lie before the horizon. The stack's own gateway answers: a query has the text
that a union view would have, so reading and planning it counts.
"""

import statistics
import time
from contextlib import closing

from sqlalchemy import delete, text

from benchmarks.ratio import Ratio
from deeplambda.adapters import hive, mysql
from deeplambda.config import Settings, load_settings
from deeplambda.records.horizon import Horizon, all_predictions_sql
from deeplambda.state.tables import REALTIME_PREDICTIONS

NAME = "count of real-time rows, 1,000 partitions"
AIM = 1.25
_ROWS, _FEW, _MANY = 1_000_000, 4, 1_000
_ROUNDS = 5
_FILL = text(
    "INSERT INTO realtime_predictions (application, event_id, kafka_partition, kafka_offset, occurred_at, "
    "predicted_at, model_version, prediction, confidence, received_at, stored_at) "
    "WITH RECURSIVE digits AS (SELECT 0 AS n UNION ALL SELECT n + 1 FROM digits WHERE n < 999), "
    "numbers AS (SELECT 1000 * high.n + low.n AS n FROM digits AS high CROSS JOIN digits AS low) "
    "SELECT :application, CONCAT('event-', n), n MOD :partitions, n DIV :partitions, UTC_TIMESTAMP(6), "
    "UTC_TIMESTAMP(6), 1, '7', 0.9, UTC_TIMESTAMP(6), UTC_TIMESTAMP(6) FROM numbers"
)


def measure() -> Ratio:
    """The median over rounds, each of which asks both."""
    settings = load_settings()
    platform = mysql.engine(settings, "platform")
    names = {partitions: f"benchmark_{partitions}" for partitions in (_FEW, _MANY)}
    rows = delete(REALTIME_PREDICTIONS).where(REALTIME_PREDICTIONS.c.application.in_(names.values()))
    try:
        with platform.begin() as connection:
            connection.execute(rows)
            for partitions, name in names.items():
                connection.execute(_FILL, {"application": name, "partitions": partitions})
        for partitions, name in names.items():
            _count_s(settings, name, partitions)  # the first one compiles
        rounds = [[_count_s(settings, name, partitions) for partitions, name in names.items()] for _ in range(_ROUNDS)]
    finally:
        with platform.begin() as connection:
            connection.execute(rows)
    few_s, many_s = (statistics.median(column) for column in zip(*rounds, strict=True))
    return Ratio(
        name=NAME,
        value=statistics.median(many / few for few, many in rounds),
        baseline_name=f"{_FEW} partitions",
        baseline=few_s,
        measured=many_s,
        unit=f"s for {_ROWS:,} rows",
        aim=AIM,
        higher_is_better=False,
    )


def _count_s(settings: Settings, application: str, partitions: int) -> float:
    half = _ROWS // partitions // 2
    horizon = Horizon(offsets={p: half + p % 7 for p in range(partitions)})  # not all alike: the look-up has to tell
    live = f"mysql.{settings.mysql_database}.realtime_predictions"
    query = f"SELECT count(*) FROM ({all_predictions_sql(application, horizon, live)})"
    expected = _ROWS - sum(horizon.offsets.values())
    with closing(hive.connect(settings)) as connection, closing(connection.cursor()) as cursor:
        begun = time.perf_counter()
        cursor.execute(query)
        found = cursor.fetchall()
        took_s = time.perf_counter() - begun
    if found != [(expected,)]:
        raise RuntimeError(f"{found[0][0]:,} rows counted, {expected:,} are past the horizon")
    return took_s


if __name__ == "__main__":
    print(measure())
