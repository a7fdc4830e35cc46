"""What the benchmarks refuse, and leave behind."""

from pathlib import Path

import psutil
import pytest

from benchmarks.scale.sections import main
from benchmarks.servers import served
from tests.traffic import eventually

STUBBORN = """
import os, pathlib, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path(sys.argv[1]).write_text(f"{os.getpid()}\\n")
time.sleep(600)
"""
PARENT = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]])"


def test_a_number_of_commits_whose_tenth_upkeep_does_not_meet_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["day", "--commits", "500"])
    assert ended.value.code == 2
    assert "multiples of 1,000" in capsys.readouterr().err


@pytest.mark.slow
def test_a_server_that_ended_leaves_no_process_of_its_group(tmp_path: Path) -> None:
    found = tmp_path / "child"

    def answers() -> bool:
        return found.exists() and found.read_text().endswith("\n")

    with served(["-c", PARENT, STUBBORN, str(found)], {}, answers, "the child did not start"):
        child = psutil.Process(int(found.read_text()))
        assert child.is_running()
    assert eventually(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, timeout_s=30)
