"""kill -9 of a part while events flow: nothing acknowledged is lost, nothing is stored twice."""

import os
import signal
import threading
from collections.abc import Callable
from subprocess import CompletedProcess

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic_core import from_json
from sqlalchemy import text

from deeplambda.adapters import mysql
from deeplambda.config import Settings
from tests.traffic import eventually, realtime_ids, send_digits

EVENTS = 10_000


@pytest.mark.parametrize("part", ["stream", "model", "kafka", "views", "mysql"])
def test_killed_part_loses_and_doubles_nothing(
    part: str,
    stack: Settings,
    champion: int,
    test_images: NDArray[np.uint8],
    deeplambda: Callable[..., "CompletedProcess[str]"],
) -> None:
    run, ledger = f"kill{part}", []
    images = np.concatenate([test_images] * (EVENTS // len(test_images) + 1))[:EVENTS]
    sending = threading.Thread(target=lambda: ledger.extend(send_digits(stack, run, images, rate=500)))
    sending.start()
    try:
        assert eventually(lambda: len(seen(stack, run)) > 100), "the stream did not score the first events"
        parts = {row["part"]: row for row in from_json(deeplambda("status", "--json", check=False).stdout)}
        os.kill(parts[part]["pid"], signal.SIGKILL)
    finally:
        sending.join()
    assert len(ledger) == len(images), "the broker came back, so every event was acknowledged in the end"
    assert eventually(lambda: set(seen(stack, run)) >= set(ledger), timeout_s=120, every_s=1), (
        f"{len(set(ledger) - set(seen(stack, run)))} acknowledged events lost"
    )
    with mysql.engine(stack, "analyst").connect() as connection:
        nulls = connection.scalar(
            text("SELECT count(*) FROM realtime_predictions WHERE event_id LIKE :run AND prediction = ''"),
            {"run": f"{run}-%"},
        )
    assert nulls == 0
    assert sorted(seen(stack, run)) == sorted(ledger)


def seen(stack: Settings, run: str) -> list[str]:
    """Ids of the run in MySQL; nothing while MySQL itself is away."""
    from sqlalchemy.exc import OperationalError

    try:
        return realtime_ids(stack, run)
    except OperationalError:
        return []
