import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

import pyspark
import pytest


def test_no_archive_stays_on_the_path_that_workers_inherit(monkeypatch: pytest.MonkeyPatch) -> None:
    archive = str(Path(pyspark.__file__).parent / "python" / "lib" / "pyspark.zip")
    monkeypatch.setattr(sys, "path", [archive, *sys.path])
    assert find_spec("what_nothing_is_called") is None
    assert archive in sys.path_importer_cache, "where each task would read its directory anew"
    runpy.run_module("deeplambda.service.spark_daemon")
    assert archive not in [*sys.path, *sys.path_importer_cache]
