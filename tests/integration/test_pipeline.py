"""The batch layer's loop, where a step of it fails."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyspark.sql import SparkSession

from batch_layer import pipeline
from deeplambda.config import Settings
from deeplambda.errors import UnfitModel
from deeplambda.loading import PackedApplication
from tests.traffic import eventually


def test_what_training_refuses_is_said_before_preparation_has_ended(
    spark: SparkSession,
    stack: Settings,
    application: PackedApplication,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun, ended = tmp_path / "begun", tmp_path / "ended"

    def prepare_slowly(*_: Any) -> None:
        def slow(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            for batch in batches:
                begun.touch()
                time.sleep(60)
                yield batch

        spark.range(1).mapInArrow(slow, "id long").collect()
        ended.touch()

    def refuse(*_: Any) -> None:
        eventually(begun.exists, timeout_s=60)
        raise UnfitModel("the loss became nan")

    monkeypatch.setattr(pipeline, "ingest_examples", lambda *_: None)
    monkeypatch.setattr(pipeline, "data_set", lambda *_: None)
    monkeypatch.setattr(pipeline, "prepare_shards", prepare_slowly)
    monkeypatch.setattr(pipeline, "train_and_publish", refuse)
    listener: Any = None
    with pytest.raises(UnfitModel, match="the loss became nan"):
        pipeline.run_pipeline(spark, stack, application, {}, listener)
    assert not ended.exists()
    assert spark.range(3).count() == 3, "other jobs go on"
