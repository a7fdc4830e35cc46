import os

import pytest

from deeplambda.config import Settings
from deeplambda.stack.containers.spark_daemons import worker_command


def test_a_worker_leaves_the_folders_of_others_and_removes_those_of_the_dead(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    local = settings.data_dir / "spark" / "local"
    (local / "of-one-that-was-killed" / "blockmgr").mkdir(parents=True)
    folders = set()
    for _ in range(2):
        worker_command(settings, 1, "1g")
        folders.add(os.environ["SPARK_LOCAL_DIRS"])
    assert {str(folder) for folder in local.iterdir()} == folders
    assert len(folders) == 2


def test_what_executors_keep_is_not_in_the_folder_that_spark_clears(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    command = worker_command(settings, 1, "1g")
    work = command[command.index("--work-dir") + 1]
    assert not os.environ["SPARK_LOCAL_DIRS"].startswith(work)
