"""Which files of a folder an application's sources mean."""

from pathlib import Path

import pytest

from batch_layer.raw_objects import files_of
from deeplambda.errors import BadInput
from deeplambda.sources import Csv
from examples.digits.application import Digits


class Points(Digits):
    name = "points"
    sources = (Csv("2026-*.csv", label="label", split="train"),)


def test_files_that_no_source_names_are_told_apart(tmp_path: Path) -> None:
    for name in ("2026-02.csv", "2026-01.csv", "2025-12.csv", "notes/read.me"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = files_of(Points(), tmp_path)
    assert found.meant == ["2026-01.csv", "2026-02.csv"]
    assert found.others == ["2025-12.csv", "notes/read.me"]


def test_a_folder_without_a_file_that_a_source_means_is_refused(tmp_path: Path) -> None:
    (tmp_path / "2025-12.csv").touch()
    with pytest.raises(BadInput, match=r"has no 2026-\*\.csv"):
        files_of(Points(), tmp_path)
