"""`make story-fraud` in small: a model that is trained anew is better by week than one that never was."""

import os
import subprocess
import sys
import tempfile

import pytest

from tests.conftest import ROOT


@pytest.mark.long
@pytest.mark.skipif(not os.environ.get("DEEPLAMBDA_TRANSACTIONS_DIR"), reason="the generated payments are too few")
def test_generations_of_weekly_labels_are_better_than_the_model_of_the_first_week() -> None:
    with tempfile.TemporaryDirectory(prefix="deeplambda-story-") as folder:  # short: sockets have a limit on their path
        command = [sys.executable, "-m", "examples.fraud_story", "--share", "0.1", "--weeks", "4"]
        own = os.environ | {"DEEPLAMBDA_DATA_DIR": folder}
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=own, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "✓ the weeks after the first generation are better than without" in done.stdout
