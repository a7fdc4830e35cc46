"""kill -9 of a part while events flow: nothing acknowledged is lost, nothing is stored twice."""

import os
import signal
from collections.abc import Callable
from subprocess import CompletedProcess

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic_core import from_json

from deeplambda.config import Settings
from tests.traffic import assert_survived, new_run


@pytest.mark.parametrize(
    "part", ["stream", *(pytest.param(part, marks=pytest.mark.long) for part in ("model", "kafka", "views", "mysql"))]
)
def test_killed_part_loses_and_doubles_nothing(
    part: str,
    stack: Settings,
    champion: int,
    test_images: NDArray[np.uint8],
    deeplambda: Callable[..., "CompletedProcess[str]"],
) -> None:
    def kill() -> None:
        parts = {row["part"]: row for row in from_json(deeplambda("status", "--json", check=False).stdout)}
        os.kill(parts[part]["pid"], signal.SIGKILL)

    assert_survived(stack, new_run(f"kill-{part}"), test_images, kill)
