"""From raw files to SQL over both views, on the real components."""

import threading
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy import Engine, create_engine, text

from deeplambda.adapters import mysql
from deeplambda.adapters.s3 import ObjectStore
from deeplambda.config import Settings
from deeplambda.state.horizon_store import read_horizon
from tests.traffic import eventually, realtime_ids, send_digits

Command = Callable[..., "CompletedProcess[str]"]


@pytest.fixture(scope="module")
def hive(stack: Settings) -> Engine:
    """Hive as an analyst connects to it."""
    password = stack.analyst_password.get_secret_value()
    return create_engine(f"hive://analyst:{password}@{stack.hive_address}/default?auth=CUSTOM")


def scalar(engine: Engine, statement: str) -> int:
    with engine.connect() as connection:
        return int(connection.execute(text(statement)).scalar_one())


def test_every_row_is_in_the_master_data_set_with_its_split(hive: Engine, champion: int) -> None:
    statement = "SELECT split, count(*) AS rows FROM lake.digits.examples GROUP BY split"
    with hive.connect() as connection:
        rows = {row.split: row.rows for row in connection.execute(text(statement))}
    assert rows in ({"train": 60_000, "test": 10_000}, {"train": 1_497, "test": 300})


def test_a_second_ingest_adds_nothing(hive: Engine, champion: int, deeplambda: Command) -> None:
    before = scalar(hive, "SELECT count(*) FROM lake.digits.examples")
    printed = deeplambda("batch", "ingest", "digits").stdout
    assert "0 of them new" in printed
    assert scalar(hive, "SELECT count(*) FROM lake.digits.examples") == before


def test_a_finished_run_is_not_trained_again(stack: Settings, champion: int, deeplambda: Command) -> None:
    deeplambda("batch", "run", "digits")
    with mysql.engine(stack, "platform").connect() as connection:
        assert connection.scalar(text("SELECT max(version) FROM model_versions WHERE application='digits'")) == champion


def test_the_model_is_as_good_as_the_literature_says(stack: Settings, hive: Engine, champion: int) -> None:
    accuracy = (
        "SELECT value FROM lake.digits.model_metrics "
        f"WHERE name = 'accuracy' AND split = 'test' AND epoch IS NULL AND version = {champion}"
    )
    with hive.connect() as connection:
        mnist = connection.execute(text("SELECT count(*) FROM lake.digits.examples")).scalar_one() == 70_000
        reached = connection.execute(text(accuracy)).scalar_one()
    assert reached >= (0.988 if mnist else 0.95)


def test_a_damaged_raw_file_is_refused_by_name(
    stack: Settings, hive: Engine, champion: int, mnist: Path, deeplambda: Command
) -> None:
    store, name = ObjectStore(stack), "t10k-images-idx3-ubyte.gz"
    key, whole = f"digits/raw/{name}", (mnist / name).read_bytes()
    before = scalar(hive, "SELECT count(*) FROM lake.digits.examples")
    try:
        store.put(key, whole[: len(whole) // 2])  # cut, and stored as such
        cut = deeplambda("batch", "ingest", "digits", check=False)
        store.client.put_object(  # flipped behind its recorded hash
            Bucket=stack.s3_bucket, Key=key, Body=whole[:-9] + b"x" + whole[-8:], Metadata={"sha256": "0" * 64}
        )
        flipped = deeplambda("batch", "ingest", "digits", check=False)
    finally:
        store.put(key, whole)
    for refused in (cut, flipped):
        assert refused.returncode == 1
        assert name in refused.stdout + refused.stderr
        assert "Traceback" not in refused.stderr
    assert scalar(hive, "SELECT count(*) FROM lake.digits.examples") == before


def test_a_prediction_is_in_mysql_within_three_seconds(
    stack: Settings, champion: int, test_images: NDArray[np.uint8]
) -> None:
    send_digits(stack, "warm", test_images[:20])
    assert eventually(lambda: len(realtime_ids(stack, "warm")) == 20)
    send_digits(stack, "single", test_images[:1])
    assert eventually(lambda: realtime_ids(stack, "single") == ["single-00000"], timeout_s=3)


def test_union_never_gains_or_loses_a_row_while_the_horizon_moves(
    stack: Settings, hive: Engine, champion: int, test_images: NDArray[np.uint8], deeplambda: Command
) -> None:
    sent = send_digits(stack, "union", test_images[:1000])
    assert eventually(lambda: len(realtime_ids(stack, "union")) == len(sent))
    archived = "SELECT count(*) FROM lake.digits.events WHERE event_id LIKE 'union-%'"
    assert eventually(lambda: scalar(hive, archived) == len(sent))

    statement = text(
        "SELECT count(*), count(DISTINCT event_id), count_if(view = 'batch') FROM digits.all_predictions "
        "WHERE event_id LIKE 'union-%'"
    )
    seen: list[tuple[int, int, int]] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            with hive.connect() as connection:
                seen.append(tuple(connection.execute(statement).one()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        deeplambda("batch", "recompute", "digits")
        assert eventually(lambda: seen[-1][2] == len(sent)), "the batch view never became visible"
    finally:
        stop.set()
        watcher.join()
    assert {(rows, events) for rows, events, _ in seen} == {(len(sent), len(sent))}
    assert {0, len(sent)} == {batch for _, _, batch in seen}, "a query saw half a cut"


def test_batch_view_and_stream_agree(stack: Settings, hive: Engine, champion: int) -> None:
    """The slow and obvious oracle: the stream's rows against the recomputation of the same events."""
    with mysql.engine(stack, "platform").connect() as connection:
        snapshot = read_horizon(connection, "digits").snapshot
    differing = (
        f"SELECT count(*) FROM lake.digits.predictions VERSION AS OF {snapshot} b "
        "JOIN mysql.deeplambda.realtime_predictions r ON b.event_id = r.event_id "
        "WHERE b.event_id LIKE 'union-%' AND (b.prediction != r.prediction OR b.kafka_offset != r.kafka_offset "
        "OR abs(b.confidence - r.confidence) > 0.02)"
    )
    assert scalar(hive, differing) == 0
