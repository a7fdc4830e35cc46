"""Sections `scoring` and `sql`: events a second of bulk scoring against a bare loop, and of SQL against bulk scoring.

Bulk scoring is what a recomputation has Spark's workers do: archived bytes to rows of the batch view, one task a core.
The bare loop calls the same model on features that lie in memory, one process and one thread a core, in batches of
whichever size is quickest. `transform` is counted in neither: its time, measured alone, is taken off bulk scoring's.

Profile (one core, the CNN of digits, per event): the pass through the model takes 370 µs, all else 20 to 40: JSON and
its checks 12, base64 8, features 8, the prediction's columns 6. What came of it: passes of 128 rows instead of 500 take
a quarter less each, for the activations stay in the cache; the payload's columns are made once; answers are looked at
all at once, and row by row only where one has a fault. Of a linear model on eight numbers the pass takes nothing and
all else 15 µs, so there the bare loop is out of reach: JSON alone takes 5.
"""

import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyhive import hive
from pyspark.sql import DataFrame, SparkSession

from batch_layer.recompute import _scored
from benchmarks.ratio import Ratio
from benchmarks.scale.generated import PARTITION, archive_events
from deeplambda.adapters import mysql
from deeplambda.adapters.lake import create_tables, spark_session
from deeplambda.adapters.s3 import ObjectStore
from deeplambda.application import payload_schema
from deeplambda.config import Settings, host_of, load_settings, port_of
from deeplambda.features import SINGLE
from deeplambda.loading import pack_application
from deeplambda.state import registry
from deeplambda.state.card import Card
from deeplambda.state.versions import fetch_model, load_code

SCORING_AIM, SQL_AIM = 0.7, 0.5
_APPLICATION = "digits"
_BARE_ROWS = (32, 64, 128, 256, 512)
_IMAGES = 4_096
_ROUND_S = 5.0


def scoring(events: int) -> list[Ratio]:
    """Bulk scoring of about `events` events against the bare loop, on the stack that runs."""
    settings, store = load_settings(), ObjectStore(load_settings())
    champion = _champion(settings)
    spark = spark_session(settings, "benchmark")
    try:
        archived = _archived(spark, events)
        cores, seconds = _cores(spark), _scored_in(settings, champion, archived)
        rows = archived.count()
    finally:
        spark.stop()
    images_N = _images(settings)
    code = load_code(store, settings, champion)
    begun = time.process_time()
    features = code.featurizer.isolated(images_N).features[SINGLE]
    transform_s = (time.process_time() - begun) / len(images_N)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(cores, spawn) as processes:
        loops = [processes.submit(_bare_rows_per_s, champion.model_dump_json(), features) for _ in range(cores)]
        bare = sum(loop.result() for loop in loops)
    platform = 1 / (seconds / rows - transform_s / cores)
    return [
        Ratio(
            name=f"bulk scoring of {rows:,} events of digits on {cores} cores, without transform",
            value=platform / bare,
            baseline_name="bare forward loop, a process a core",
            baseline=bare,
            measured=platform,
            unit="events/s",
            aim=SCORING_AIM,
            higher_is_better=True,
        )
    ]


def sql_inference(events: int) -> list[Ratio]:
    """`SELECT predict_digits(image)` through the Hive gateway against bulk scoring, on the stack that runs."""
    settings = load_settings()
    spark = spark_session(settings, "benchmark")
    try:
        archived = _archived(spark, events)
        bulk = archived.count() / _scored_in(settings, _champion(settings), archived)
    finally:
        spark.stop()
    password = settings.analyst_password.get_secret_value()
    host, port = host_of(settings.hive_address), port_of(settings.hive_address)
    with hive.connect(host, port, auth="CUSTOM", username="analyst", password=password) as connection:
        cursor = connection.cursor()
        for _ in range(3):  # the first two warm up the workers and the model service
            begun = time.monotonic()
            cursor.execute("SELECT count(predict_digits(image)) FROM lake.digits.examples")
            ((rows,),) = cursor.fetchall()
            by_sql = rows / (time.monotonic() - begun)
    return [
        Ratio(
            name=f"SQL inference on {rows:,} rows of digits",
            value=by_sql / bulk,
            baseline_name="bulk scoring, transform included in both",
            baseline=bulk,
            measured=by_sql,
            unit="rows/s",
            aim=SQL_AIM,
            higher_is_better=True,
        )
    ]


def _champion(settings: Settings) -> Card:
    with mysql.engine(settings, "platform").connect() as connection:
        champion = registry.champion(connection, _APPLICATION)
    assert champion is not None, "the benchmarks' stack has one"
    return champion


def _archived(spark: SparkSession, events: int) -> DataFrame:
    """At least `events` archived events of ours, made of the examples as often as it takes."""
    create_tables(spark, pack_application(_APPLICATION, load_settings()).load())
    ours = spark.table(f"lake.{_APPLICATION}.events").where(f"kafka_partition >= {PARTITION}")
    while (there := ours.count()) < events:
        archive_events(spark, _APPLICATION, f"from-{there}")
    return ours


def _scored_in(settings: Settings, champion: Card, events: DataFrame) -> float:
    """Seconds in which Spark scores the events and throws the rows away; its workers are warm, and refuse none."""

    scored = _scored(settings, champion, events)
    refused = scored.where("reason IS NOT NULL").count()
    assert not refused, f"{refused:,} events are refused, which is quicker than to score them"
    begun = time.monotonic()
    scored.write.format("noop").mode("overwrite").save()
    return time.monotonic() - begun


def _cores(spark: SparkSession) -> int:
    return min(spark.sparkContext.defaultParallelism, os.cpu_count() or 1)


def _images(settings: Settings) -> pa.RecordBatch:
    images = np.random.default_rng(0).integers(0, 256, (_IMAGES, 784), np.uint8)
    schema = payload_schema(pack_application(_APPLICATION, settings).load().event)
    return pa.RecordBatch.from_arrays([pa.array([image.tobytes() for image in images], pa.binary())], schema=schema)


def _bare_rows_per_s(champion_json: str, features_N: NDArray[np.float32]) -> float:
    """In a process of its own, on one thread: the best of several batch sizes, each for some seconds."""
    import torch

    torch.set_num_threads(1)
    settings, champion = load_settings(), Card.model_validate_json(champion_json)
    store = ObjectStore(settings)
    model = fetch_model(store, load_code(store, settings, champion).application, champion)

    def rate(batch_rows: int, within_s: float) -> float:
        rows, begun = 0, time.monotonic()
        while time.monotonic() < begun + within_s:
            at = rows % (len(features_N) - batch_rows + 1)
            model(torch.from_numpy(features_N[at : at + batch_rows])).numpy()
            rows += batch_rows
        return rows / (time.monotonic() - begun)

    with torch.inference_mode():
        quickest = max(_BARE_ROWS, key=lambda batch_rows: rate(batch_rows, _ROUND_S / 5))
        return rate(quickest, _ROUND_S)
