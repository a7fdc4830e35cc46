"""Run-time metrics of all layers from Kafka into `metrics`; the Kafka offset is the key, so a replay adds nothing."""

import logging
import threading
from contextlib import closing
from typing import Annotated, Any

from pydantic import Field, FiniteFloat, ValidationError
from sqlalchemy import Engine, text
from sqlalchemy.dialects.mysql import insert

from deeplambda.adapters import kafka, mysql
from deeplambda.config import Settings
from deeplambda.fields import Moment
from deeplambda.records import topics
from deeplambda.records.runtime_metrics import RuntimeMetric
from deeplambda.service.loops import LoopStatus
from deeplambda.state.tables import METRICS

GROUP = "deeplambda.views.metrics"

_INSERT = insert(METRICS).on_duplicate_key_update({"kafka_offset": text("kafka_offset")})
_log = logging.getLogger(__name__)


class Storable(RuntimeMetric):
    """A metric that fits its row."""

    layer: Annotated[str, Field(max_length=32)]
    part: Annotated[str, Field(max_length=32)]
    application: Annotated[str | None, Field(max_length=64)] = None
    name: Annotated[str, Field(max_length=64)]
    value: FiniteFloat
    unit: Annotated[str, Field(max_length=16)]
    kafka_partition: Annotated[int | None, Field(ge=0, lt=2**31)] = None
    at: Moment


def run(settings: Settings, status: LoopStatus, stop: threading.Event) -> None:
    """Store metrics until told to stop. Raises: NotReady, after which `Loop` calls it again."""
    engine = mysql.engine(settings, "views")
    with closing(kafka.consumer(settings, topics.METRICS, group=GROUP, only_reads=True)) as reader:
        while not stop.is_set():
            with kafka.kafka_errors(settings):
                records = [record for batch in reader.poll(1_000).values() for record in batch]
            if records:
                store(engine, records)
                with kafka.kafka_errors(settings):
                    reader.commit()
            status.working()


def store(engine: Engine, records: list[Any]) -> int:
    """Write the metrics in Kafka records; returns how many there were. Raises: NotReady."""
    rows, refused = [], list[str]()
    for record in records:
        try:
            metric = Storable.model_validate_json(record.value or b"")
        except ValidationError as exc:
            refused.append(f"offset {record.offset}: {exc.errors()[0]['msg']}")
            continue
        rows.append({"kafka_offset": record.offset} | metric.model_dump())
    if refused:  # in one line: whoever may write to the topic could fill the disk with the log
        _log.warning("%d records of %s are no metrics, the first at %s", len(refused), topics.METRICS, refused[0])
    if rows:
        with mysql.mysql_errors(), engine.begin() as connection:
            connection.execute(_INSERT, rows)
    return len(rows)
