"""Predictions to rows of MySQL: the views against `LOAD DATA` of the same rows, and 10,000 rows a second for a while.

A process of the views of its own follows an application that is there for this alone. The baseline loads a file with
the same rows into a table like theirs, by one statement: what MySQL can take, without Kafka, checks or upserts.

Profile (2 cores, a row of ten scores, processor time of one row): the views take 17 µs, 7 of them (alone on a core) in
the regular expression and what is made of its finds; MySQL takes 14 µs, the broker 2. A record that pydantic has to
read takes 20 µs more. Both cores are busy. By kafka-python, which was half of the views' time, it was 39,000 rows a
second, by librdkafka it is 56,000; LOAD DATA itself needs 8 µs of one core.
"""

import csv
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import pymysql
from kafka import KafkaProducer
from sqlalchemy import func, select

from benchmarks.ratio import Ratio
from deeplambda.adapters import mysql
from deeplambda.adapters.kafka import consumer, create_topics
from deeplambda.clock import now
from deeplambda.config import Settings, host_of, load_settings, port_of
from deeplambda.records import topics
from deeplambda.records.predictions import Prediction
from deeplambda.state.tables import REALTIME_PREDICTIONS
from serving_layer.views.realtime import GROUP

ROWS = 100_000
AIM = 0.5
RATE, FOR_S = 10_000, 120
AIM_KEPT_UP = SENT_SHARE = 0.98
_DRAINED_WITHIN_S = 300.0
_COPY = "realtime_predictions_copy"


def measure() -> list[Ratio]:
    """Needs a running stack's Kafka and MySQL."""
    settings = load_settings()
    name = f"benchmark_{secrets.token_hex(4)}"
    own = settings.model_copy(update={"applications": (name,)})
    create_topics(own)
    engine = mysql.engine(settings, "platform")
    try:
        _send(own, name, 0, ROWS)
        with _views(own) as views:
            drained = _rows_per_s(own, name, ROWS, views)
            loaded = _loaded_rows_per_s(settings, name)
            started_s = time.monotonic()
            _send(own, name, ROWS, RATE * FOR_S, RATE)
            sent_rate = RATE * FOR_S / (time.monotonic() - started_s)
            in_time = _count(own, name) - ROWS
            if sent_rate < SENT_SHARE * RATE:
                raise RuntimeError(f"{sent_rate:,.0f} predictions a second were sent, not {RATE:,}")
    finally:
        with mysql.engine(settings, "root").begin() as connection:
            connection.exec_driver_sql(f"DROP TABLE IF EXISTS {_COPY}")
        mysql.delete_in_chunks(engine, REALTIME_PREDICTIONS, REALTIME_PREDICTIONS.c.application == name)
    return [
        Ratio(
            name=f"{ROWS:,} predictions to rows",
            value=drained / loaded,
            baseline_name="LOAD DATA",
            baseline=loaded,
            measured=drained,
            unit="rows/s",
            aim=AIM,
            higher_is_better=True,
        ),
        Ratio(
            name=f"rows in MySQL after {FOR_S} s of {RATE:,} a second",
            value=in_time / (RATE * FOR_S),
            baseline_name=f"predictions sent, {sent_rate:,.0f} a second",
            baseline=RATE * FOR_S,
            measured=in_time,
            unit="rows",
            aim=AIM_KEPT_UP,
            higher_is_better=True,
        ),
    ]


def _send(settings: Settings, name: str, first: int, count: int, rate: float | None = None) -> None:
    at = now()
    text = Prediction(
        application=name,
        event_id="EVENT",
        kafka_partition=0,
        kafka_offset=0,
        occurred_at=at,
        received_at=at,
        predicted_at=at + timedelta(milliseconds=5),
        model_version=1,
        prediction="7",
        confidence=0.91,
        value=None,
        scores={str(digit): 0.1 for digit in range(10)},
        inference_ms=3.0,
        code_version="0" * 12,
    ).model_dump_json()
    before, after = text.split("EVENT")
    after = after.replace('"kafka_offset":0', '"kafka_offset":OFFSET')
    middle, end = after.split("OFFSET")
    producer = KafkaProducer(bootstrap_servers=settings.kafka_bootstrap, acks=1, linger_ms=20, batch_size=256 * 1024)
    started_s = time.monotonic()
    for n in range(first, first + count):
        producer.send(topics.predictions(name), value=f"{before}{name}-{n:08}{middle}{n}{end}".encode())
        if rate and n % 100 == 0:
            time.sleep(max(0.0, started_s + (n - first) / rate - time.monotonic()))
    producer.flush()
    producer.close()


@contextmanager
def _views(settings: Settings) -> Iterator[subprocess.Popen[bytes]]:
    with TemporaryDirectory() as folder:
        data = load_settings().data_dir
        environment = os.environ | {
            "DEEPLAMBDA_DATA_DIR": folder,
            "DEEPLAMBDA_SECRETS_DIR": str(data / "secrets"),
            "DEEPLAMBDA_APPLICATIONS": f'["{settings.applications[0]}"]',
        }
        if (data / "stack.env").exists():
            Path(folder, "stack.env").write_text((data / "stack.env").read_text())
        with subprocess.Popen([sys.executable, "-m", "serving_layer.views"], env=environment) as process:
            try:
                yield process
            finally:
                process.terminate()


def _rows_per_s(settings: Settings, name: str, rows: int, views: subprocess.Popen[bytes]) -> float:
    """From the first committed offsets to the last: to count the rows meanwhile would keep MySQL as busy as they do."""
    deadline_s = time.monotonic() + _DRAINED_WITHIN_S
    with closing(consumer(settings, topics.predictions(name), group=GROUP)) as reader:

        def stored() -> int:
            if views.poll() is not None or time.monotonic() > deadline_s:
                raise RuntimeError(f"the views ended, or did not store {rows:,} rows within {_DRAINED_WITHIN_S:.0f} s")
            return sum(reader.committed(partition) or 0 for partition in reader.assignment())

        while not (first := stored()):
            time.sleep(0.02)
        started_s = time.monotonic()
        while (seen := stored()) < rows:
            time.sleep(0.02)
        took_s = time.monotonic() - started_s
    if (found := _count(settings, name)) != rows:
        raise RuntimeError(f"{rows:,} predictions are {found:,} rows")
    return (seen - first) / took_s


def _count(settings: Settings, name: str) -> int:
    with mysql.engine(settings, "platform").connect() as connection:
        own = REALTIME_PREDICTIONS.c.application == name
        return connection.scalar(select(func.count()).select_from(REALTIME_PREDICTIONS).where(own)) or 0


def _loaded_rows_per_s(settings: Settings, name: str) -> float:
    """LOAD DATA of the rows that the views have just stored."""
    columns = [column.name for column in REALTIME_PREDICTIONS.columns]
    with mysql.engine(settings, "root").connect() as connection:
        own = REALTIME_PREDICTIONS.c.application == name
        rows = connection.execute(select(REALTIME_PREDICTIONS).where(own)).all()
    with TemporaryDirectory() as folder:
        file = Path(folder, "rows.csv")
        with file.open("w", newline="") as written:
            writer = csv.writer(written, quoting=csv.QUOTE_ALL, escapechar="\\", doublequote=False)
            for row in rows:
                writer.writerow([each.replace(tzinfo=None) if hasattr(each, "tzinfo") else each for each in row])
        connection = pymysql.connect(
            host=host_of(settings.mysql_address),
            port=port_of(settings.mysql_address),
            user="root",
            password=settings.mysql_root_password.get_secret_value(),
            database=settings.mysql_database,
            local_infile=True,
            autocommit=True,
        )
        with connection, connection.cursor() as cursor:
            cursor.execute(f"CREATE TABLE {_COPY} LIKE realtime_predictions")
            variables = ", ".join(f"@{column}" for column in columns)
            values = ", ".join(f"{column} = NULLIF(@{column}, '')" for column in columns)
            started_s = time.monotonic()
            copied = cursor.execute(
                f"LOAD DATA LOCAL INFILE '{file}' INTO TABLE {_COPY} FIELDS TERMINATED BY ',' ENCLOSED BY '\"' "
                f"LINES TERMINATED BY '\\r\\n' ({variables}) SET {values}"
            )
            took_s = time.monotonic() - started_s
    if copied != len(rows):
        raise RuntimeError(f"LOAD DATA took {copied:,} of {len(rows):,} rows")
    return copied / took_s


if __name__ == "__main__":
    for ratio in measure():
        print(ratio)
