"""`make story` in small: every promise of the closed loop is kept, on a stack of the story's own."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.conftest import LEAN, ROOT


@pytest.mark.long
def test_a_change_is_noticed_learned_from_and_a_mistake_is_taken_back(mnist: Path) -> None:
    if "scikit-learn" in mnist.name:
        pytest.skip("the story needs MNIST: scikit-learn's digits are too few")
    with tempfile.TemporaryDirectory(prefix="deeplambda-story-") as folder:  # short: sockets have a limit on their path
        own = LEAN | {"DEEPLAMBDA_DATA_DIR": folder, "DEEPLAMBDA_MNIST_DIR": str(mnist)}
        command = [sys.executable, "-m", "examples.story", "--small", "--rate", "400"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | own, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "generation 2 of digits: rejected" in done.stdout, "so says the command that began it"
    assert "✓ labels of live events decide for the generation's shadow" in done.stdout
    assert done.stdout.count("kept ") == 10, "every promise is told at the end"
