"""The four examples in one stack at once: from files to predictions, equal ones by stream and by recomputation."""

import gzip
import json
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, NamedTuple

import pandas as pd
import pytest
from pydantic_core import from_json, to_json
from sqlalchemy import Engine, text
from sqlalchemy.engine import Connection

from deeplambda.adapters import mysql
from deeplambda.application import payload_fields
from deeplambda.config import Settings, load_settings
from deeplambda.idx import read_idx, write_idx
from deeplambda.loading import pack_application
from deeplambda.records import topics
from examples.data import data_folder
from tests.conftest import LEAN, hive_of
from tests.traffic import eventually, new_run, producer

Command = Callable[..., "CompletedProcess[str]"]


class Answer(NamedTuple):
    """What a view says of an event; value: the prediction where it is a number, else NaN."""

    prediction: str
    value: float
    scores: dict[str, float]


Said = dict[str, Answer]
"""By event id."""

EXAMPLES = ("digits", "sentiment", "turbofan", "fraud")
EVENTS = 40
"""Of each application, at most."""


def excerpt(data: Path, folder: Path) -> Path:
    """The files of `data` with fewer rows: 2,000 digits and 1,000 sentences of a kind, 20 engines, 1 customer in 8."""
    folder.mkdir(parents=True)
    for file in data.iterdir():
        raw, place = file.read_bytes(), folder / file.name
        if "-idx" in file.name:
            place.write_bytes(write_idx(read_idx(raw, file.name)[:2_000]))
        elif file.suffix == ".parquet":
            payments = pd.read_parquet(file)
            payments[payments["CUSTOMER_ID"] % 8 == 0].to_parquet(place, index=False)
        elif file.suffix == ".gz":
            lines = gzip.decompress(raw).splitlines(keepends=True)
            lives = file.name.startswith("RUL")  # a line for each engine
            of_engines = lines[:20] if lives else [line for line in lines if float(line.split()[0]) <= 20]
            place.write_bytes(gzip.compress(b"".join(of_engines)))
        else:
            place.write_bytes(b"".join(raw.splitlines(keepends=True)[:1_000]))
    return folder


@pytest.fixture(scope="module")
def together(deeplambda: Command) -> Iterator[Settings]:
    """A stack of the module's own that serves all examples, each with a champion after one epoch."""
    folder = Path(tempfile.mkdtemp(prefix="deeplambda-four-"))
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("DEEPLAMBDA_DATA_DIR", str(folder / ".deeplambda"))
        environment.setenv("DEEPLAMBDA_APPLICATIONS_DIR", str(Path("examples").resolve()))
        environment.setenv("DEEPLAMBDA_APPLICATIONS", json.dumps(EXAMPLES))
        for variable, value in LEAN.items():
            environment.setenv(variable, value)
        try:
            deeplambda("up", "--free-ports", "kafka", "s3", "mysql", "metastore")
            load_settings.cache_clear()
            for name in EXAMPLES:
                data, origin = data_folder(name, folder / "data" / name)
                print(f"{name}: {origin}")
                deeplambda("data", "put", name, str(excerpt(data, folder / "excerpt" / name)))
            deeplambda("batch", "run", *EXAMPLES, "--set", "epochs=1")
            deeplambda("up")  # now, for twelve streams that wait take most of a core from training
            yield load_settings()
        finally:
            deeplambda("down")
            shutil.rmtree(folder)
    load_settings.cache_clear()


@pytest.fixture(scope="module")
def hive(together: Settings) -> Iterator[Engine]:
    with hive_of(together) as engine:
        yield engine


def send_test_rows(settings: Settings, hive: Engine, name: str, run: str) -> set[str]:
    """Events made of the first test rows as their producer would make them; their ids."""
    columns = ", ".join(payload_fields(pack_application(name, settings).load().event))
    rows = text(f"SELECT to_json(struct({columns})) FROM lake.{name}.examples WHERE split = 'test' LIMIT {EVENTS}")
    with hive.connect() as connection:
        payloads = [from_json(payload) for payload in connection.scalars(rows)]
    sender, moment = producer(settings), datetime.now(UTC).isoformat()
    ids = [f"{run}-{n:02}" for n in range(len(payloads))]
    for event_id, payload in zip(ids, payloads, strict=True):
        event: dict[str, Any] = {"event_id": event_id, "occurred_at": moment, **payload}
        sender.send(topics.events(name), key=event_id.encode(), value=to_json(event))
    sender.flush(timeout=30)
    sender.close()
    return set(ids)


def said(connection: Connection, source: str) -> Said:
    rows = connection.execute(text(f"SELECT event_id, prediction, value, scores FROM {source}"))
    return {
        row.event_id: Answer(
            row.prediction, math.nan if row.value is None else row.value, from_json(row.scores or "{}")
        )
        for row in rows
    }


def test_every_example_goes_from_its_files_to_equal_predictions_by_stream_and_batch(
    together: Settings, hive: Engine, deeplambda: Command
) -> None:
    run = new_run("four")
    sent = {name: send_test_rows(together, hive, name, run) for name in EXAMPLES}
    assert all(sent.values()), "each example has test rows"

    def by_stream(name: str) -> Said:
        with mysql.engine(together, "analyst").connect() as connection:
            return said(connection, f"realtime_predictions WHERE application = '{name}' AND event_id LIKE '{run}-%'")

    def archived(name: str) -> int | None:
        with hive.connect() as connection:
            return connection.scalar(text(f"SELECT count(*) FROM lake.{name}.events"))

    def scored_and_archived() -> bool:
        return all(by_stream(name).keys() == ids and archived(name) == len(ids) for name, ids in sent.items())

    assert eventually(scored_and_archived, every_s=1), {name: (len(by_stream(name)), archived(name)) for name in sent}
    streams = {name: by_stream(name) for name in sent}  # now, for rows are trimmed once a batch view has them
    deeplambda("batch", "recompute", *EXAMPLES)
    for name, stream in streams.items():
        with hive.connect() as connection:
            batch = said(connection, f"lake.{name}.predictions")
        assert {event_id: answer.prediction for event_id, answer in batch.items()} == {
            event_id: answer.prediction for event_id, answer in stream.items()
        }
        for event_id, answer in batch.items():  # a service may round to bf16, as its machine makes worth while
            assert answer.value == pytest.approx(stream[event_id].value, rel=1e-2, nan_ok=True)
            assert answer.scores == pytest.approx(stream[event_id].scores, abs=0.02)
