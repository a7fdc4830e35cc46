"""From raw files to SQL over both views, on the real components."""

import io
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from pyspark.sql import SparkSession
from rich.console import Console
from sqlalchemy import Connection, Engine, text

from batch_layer.console import PipelineConsole
from batch_layer.pipeline import run_pipeline
from deeplambda.adapters import mysql
from deeplambda.adapters.s3 import ObjectStore
from deeplambda.config import Settings
from deeplambda.loading import pack_application
from deeplambda.state.horizon_store import read_horizon
from tests.conftest import DIGITS_EPOCHS
from tests.traffic import eventually, new_run, realtime_ids, send_digits

Command = Callable[..., "CompletedProcess[str]"]


class Said(NamedTuple):
    """What a view says of one event."""

    event_id: str
    kafka_partition: int
    kafka_offset: int
    prediction: str
    confidence: float


def scalar(engine: Engine, statement: str) -> int:
    with engine.connect() as connection:
        return int(connection.execute(text(statement)).scalar_one())


def test_every_row_is_in_the_master_data_set_with_its_split(hive_engine: Engine, champion: int) -> None:
    statement = "SELECT split, count(*) AS rows FROM lake.digits.examples GROUP BY split"
    with hive_engine.connect() as connection:
        rows = {row.split: row.rows for row in connection.execute(text(statement))}
    assert rows in (
        {"train": 60_000, "test": 10_000},
        {"train": 10_000, "test": 2_000},  # the sixth
        {"train": 1_497, "test": 300},  # scikit-learn's
    )


def test_a_second_run_adds_no_row_and_trains_nothing(
    stack: Settings, spark: SparkSession, hive_engine: Engine, champion: int
) -> None:
    before, said = scalar(hive_engine, "SELECT count(*) FROM lake.digits.examples"), io.StringIO()
    listener = PipelineConsole(Console(file=said))
    card = run_pipeline(spark, stack, pack_application("digits", stack), {"epochs": DIGITS_EPOCHS}, listener)
    assert re.search(r"0 objects read, \d+ passed over as read before", said.getvalue())
    assert card.version == champion
    assert scalar(hive_engine, "SELECT count(*) FROM lake.digits.examples") == before
    with mysql.engine(stack, "platform").connect() as connection:
        assert connection.scalar(text("SELECT max(version) FROM model_versions WHERE application='digits'")) == champion


def test_the_model_is_as_good_as_the_literature_says(stack: Settings, hive_engine: Engine, champion: int) -> None:
    accuracy = (
        "SELECT value FROM lake.digits.model_metrics "
        f"WHERE name = 'accuracy' AND split = 'test' AND epoch IS NULL AND version = {champion}"
    )
    with hive_engine.connect() as connection:
        mnist = connection.execute(text("SELECT count(*) FROM lake.digits.examples")).scalar_one() == 70_000
        reached = connection.execute(text(accuracy)).scalar_one()
    assert reached >= (0.988 if mnist else 0.95)


def cut(store: ObjectStore, key: str, whole: bytes) -> None:
    """The second half is missing, and was already when it was stored."""
    store.put(key, whole[: len(whole) // 2])


def flip(store: ObjectStore, key: str, whole: bytes) -> None:
    """A byte has changed, and the hash recorded with it is another's."""
    body = whole[:-9] + b"x" + whole[-8:]
    store.client.put_object(Bucket=store.bucket, Key=key, Body=body, Metadata={"sha256": "0" * 64})


@pytest.mark.long  # `test_images_are_labelled_by_their_folders` has an ingest that refuses one
@pytest.mark.parametrize("damage", [flip, cut])
def test_a_damaged_raw_file_is_refused_by_name(
    damage: Callable[[ObjectStore, str, bytes], None],
    stack: Settings,
    hive_engine: Engine,
    champion: int,
    digits: Path,
    deeplambda: Command,
) -> None:
    store, name = ObjectStore(stack), "t10k-images-idx3-ubyte.gz"
    key, whole = f"digits/raw/{name}", (digits / name).read_bytes()
    before = scalar(hive_engine, "SELECT count(*) FROM lake.digits.examples")
    try:
        damage(store, key, whole)
        refused = deeplambda("batch", "ingest", "digits", check=False)
    finally:
        store.put(key, whole)
    assert refused.returncode == 1
    assert name in refused.stdout + refused.stderr
    assert "Traceback" not in refused.stderr
    assert scalar(hive_engine, "SELECT count(*) FROM lake.digits.examples") == before


def test_a_prediction_is_in_mysql_within_three_seconds(
    stack: Settings, champion: int, test_images: NDArray[np.uint8]
) -> None:
    warm, single = new_run("warm"), new_run("single")
    send_digits(stack, warm, test_images[:20])
    assert eventually(lambda: len(realtime_ids(stack, warm)) == 20)
    send_digits(stack, single, test_images[:1])
    assert eventually(lambda: realtime_ids(stack, single) == [f"{single}-00000"], timeout_s=3)


@dataclass(frozen=True, kw_only=True)
class Recomputation:
    """What was seen of one run of events while `deeplambda batch recompute` made a batch view of it.

    sent: the ids that the broker acknowledged. seen: by each query in turn, rows, events, and rows of the batch view.
    stream, batch: what either says of each event.
    """

    sent: list[str]
    seen: list[tuple[int, int, int]]
    stream: list[Said]
    batch: list[Said]


@pytest.fixture(scope="module")
def recomputation(
    stack: Settings, hive_engine: Engine, champion: int, test_images: NDArray[np.uint8], deeplambda: Command
) -> Recomputation:
    run = new_run("union")
    sent = send_digits(stack, run, test_images[:1000])
    assert eventually(lambda: len(realtime_ids(stack, run)) == len(sent))
    of_run = f"WHERE event_id LIKE '{run}-%'"
    archived = f"SELECT count(*) FROM lake.digits.events {of_run}"
    assert eventually(lambda: scalar(hive_engine, archived) == len(sent), every_s=1)
    with mysql.engine(stack, "analyst").connect() as connection:  # now, for rows are trimmed later
        stream = said(connection, f"realtime_predictions {of_run}")

    statement = text(
        f"SELECT count(*), count(DISTINCT event_id), count_if(view = 'batch') FROM digits.all_predictions {of_run}"
    )
    seen: list[tuple[int, int, int]] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(1):  # each query costs a core most of a second
            with hive_engine.connect() as connection:
                seen.append(tuple(connection.execute(statement).one()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        assert eventually(lambda: seen), "the view did not answer"
        deeplambda("batch", "recompute", "digits")
        assert eventually(lambda: seen[-1][2]), "the batch view never became visible"
    finally:
        stop.set()
        watcher.join()
    with mysql.engine(stack, "platform").connect() as connection:
        snapshot = read_horizon(connection, "digits").snapshot
    with hive_engine.connect() as connection:
        batch = said(connection, f"lake.digits.predictions VERSION AS OF {snapshot} {of_run}")
    return Recomputation(sent=sent, seen=seen, stream=stream, batch=batch)


def said(connection: Connection, source: str) -> list[Said]:
    """What a table says of each event of a run, by event id."""
    columns = "event_id, kafka_partition, kafka_offset, prediction, confidence"
    rows = connection.execute(text(f"SELECT {columns} FROM {source} ORDER BY event_id"))
    return [Said(*row) for row in rows]


def test_union_never_gains_or_loses_a_row_while_the_horizon_moves(recomputation: Recomputation) -> None:
    sent = len(recomputation.sent)
    assert {(rows, events) for rows, events, _ in recomputation.seen} == {(sent, sent)}
    assert {0, sent} == {batch for _, _, batch in recomputation.seen}, "a query saw half a cut"


def test_batch_view_and_stream_agree(recomputation: Recomputation) -> None:
    """The slow and obvious oracle: the stream's rows against the recomputation of the same events, one by one."""
    assert [row.event_id for row in recomputation.stream] == sorted(recomputation.sent)
    assert [row.event_id for row in recomputation.batch] == sorted(recomputation.sent)
    for batch, stream in zip(recomputation.batch, recomputation.stream, strict=True):
        assert batch._replace(confidence=stream.confidence) == stream
        assert batch.confidence == pytest.approx(stream.confidence, abs=0.02)
