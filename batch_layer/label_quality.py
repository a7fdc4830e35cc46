"""The quality of the labelled events that are new to a generation, measured before anything is made of them.

1. The labels that no version at the gate has seen are judged as the data set has judged them; those that count for
   nothing are shares by reason: `refused_labels`.
2. Their events are measured as a day's are.
3. The figures are held against the application's expectations, and kept.
How labels are distributed, and what the champion says of the events, is not measured: a world that has changed changes
both, and a generation is there to learn it. The gate judges that.
"""

from collections.abc import Mapping

from pyspark import StorageLevel
from pyspark.sql import SparkSession

from batch_layer import quality_rows
from batch_layer.counted_events import counted_events
from batch_layer.data_set import DataSet
from batch_layer.event_quality import measures_of
from batch_layer.labelled_events import LabelRefusal, known_labels, refused_labels
from batch_layer.quality import broken, share
from deeplambda.clock import now
from deeplambda.config import Settings
from deeplambda.loading import PackedApplication
from deeplambda.records.lifecycle import QualityMeasured

_HARMLESS = (LabelRefusal.EXAMPLE, LabelRefusal.SUPERSEDED)


def measure_generation(
    spark: SparkSession,
    settings: Settings,
    packed: PackedApplication,
    dataset: DataSet,
    number: int,
    since: Mapping[int, int],
) -> list[str]:
    """Measure what is new in a generation's data set, and keep it; the hard expectations that are broken, in words.

    since: by partition, the first label that is new. Without a new label nothing is measured. Raises: NotReady.
    """
    found = dataset.labelled_events
    if found is None:
        return []
    known = known_labels(spark, packed, found, dataset.snapshot, since).persist(StorageLevel.DISK_ONLY)
    try:
        labels, refused = refused_labels(known)
        if not labels:
            return []
        labelled = known.where("labels > 0 AND position IS NOT NULL").select("event_id")
        archived = counted_events(spark, packed.name, found.events_snapshot, found.withdrawals_snapshot)
        events = archived.join(labelled, "event_id", "left_semi")
        of_labels = [
            share("refused_labels", some, labels, reason) for reason, some in refused.items() if reason not in _HARMLESS
        ]
        measures = [
            *(of_labels or [share("refused_labels", 0, labels)]),
            *measures_of(spark, settings, packed, events),
        ]
    finally:
        known.unpersist()
    unexpected = broken(packed.load().expectations, measures)
    measured = QualityMeasured(
        application=packed.name,
        subject="generation",
        day=now().date(),
        ingest=f"generation-{number}",
        snapshot=found.events_snapshot,
        measures=measures,
        broken=[reason for _, reason in unexpected],
    )
    quality_rows.keep(spark, settings, measured)
    return [reason for expected, reason in unexpected if expected.hard]
