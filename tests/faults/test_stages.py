"""A stage of the batch layer that is killed, or fills a disk, leaves nothing half done; run again, it ends as ever.

kill -9 comes at these moments, each a request to S3, so that it is always the same one:

| stage | moments |
|---|---|
| ingest | while it writes examples, before it commits them to a branch, before it publishes that, or the quarantine |
| prepare | a shard stored but not announced, some shards announced, all of them but no manifest |
| train | tensors of a checkpoint without its description, an epoch stored but not told on Kafka |
| publish, which ends train | weights without a card, a card without a row in the registry, that row without Hive's |
| recompute | while it writes the batch view, before it commits it, committed but the horizon not moved |
| maintain | while it writes small files together, before it commits them |

A disk is full for each stage where Spark keeps its scratch files, and where S3 keeps its objects.
"""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from deeplambda.config import Settings
from tests.conftest import ROOT
from tests.faults.points import STAGES, Left, Points, kill
from tests.faults.s3_gate import Moment
from tests.faults.small_disk import can_mount, small_s3, with_small_disk

KILLS = {
    "ingest": {
        "while it writes examples": Moment("^PUT .*/examples/data/", nth=2),
        "before it commits them to a branch": Moment(r"^PUT .*/examples/metadata/.*metadata\.json", nth=3),
        "before it publishes the branch": Moment(r"^PUT .*/examples/metadata/.*metadata\.json", nth=4),
        "before it writes the quarantine": Moment("^PUT .*/quarantine/data/"),
    },
    "prepare": {
        "once a shard is stored": Moment(r"^PUT .*/train-\d+\.safetensors", stored=True),
        "once a shard is announced": Moment(r"^PUT .*/prepared/.*\.announcement\.json", nth=2, stored=True),
        "before the manifest": Moment(r"^PUT .*/manifest\.json"),
    },
    "train": {
        "within the first checkpoint": Moment(r"^PUT .*/checkpoint-00001\.json"),
        "once the second checkpoint is stored": Moment(r"^PUT .*/checkpoint-00002\.json", stored=True),
        "once a version's weights are stored": Moment(r"^PUT .*/models/1/weights\.safetensors", stored=True),
        "before the version is in the registry": Moment(r"^PUT .*/models/1/card\.json", stored=True),
        "before its metrics are in Hive": Moment("^PUT .*/model_metrics/data/"),
        "before it is in Hive itself": Moment("^PUT .*/models/data/"),
    },
    "recompute": {
        "while it writes the batch view": Moment("^PUT .*/predictions/data/"),
        "before it commits the batch view": Moment(r"^PUT .*/predictions/metadata/00001-.*metadata\.json"),
        "before it moves the horizon": Moment("^PUT .*/quarantine/data/"),
    },
    "maintain": {
        "while it writes small files together": Moment("^PUT .*/events/data/"),
        "before it commits them": Moment(r"^PUT .*/events/metadata/.*metadata\.json"),
    },
}

LEFT_BYTES = {"ingest": 100_000, "prepare": 200_000, "train": 8_000, "recompute": 8_000, "maintain": 4_000}
"""Of the disk of S3, so that a stage gets through some of its work."""


@pytest.fixture(scope="module")
def undisturbed(spark: SparkSession, stack: Settings, tmp_path_factory: pytest.TempPathFactory) -> Left:
    """What the stages leave behind when nothing ends them."""
    points = Points(spark, stack, tmp_path_factory.mktemp("undisturbed"))
    for stage in STAGES:
        points.finish(stage)
    return points.left()


@pytest.mark.long
@pytest.mark.parametrize(
    "each",
    [pytest.param(1, id="first"), pytest.param(None, id="all", marks=pytest.mark.timeout(2400))],
)
def test_a_killed_stage_run_again_leaves_what_an_undisturbed_one_does(
    each: int | None, undisturbed: Left, spark: SparkSession, stack: Settings, tmp_path: Path
) -> None:
    points = Points(spark, stack, tmp_path)
    for stage in STAGES:
        for name, moment in list(KILLS[stage].items())[:each]:
            kill(points, stage, moment, name)
        points.finish(stage)
    assert not points.left().differs(undisturbed)
    assert points.unknown_files(), "what was killed has left some"
    points.age(days=4)
    points.run("maintain")
    assert not points.unknown_files()
    assert not points.left().differs(undisturbed)


needs_small_disks = pytest.mark.skipif(
    not can_mount(), reason="this user may mount no tmpfs in a namespace of their own"
)


@needs_small_disks
@pytest.mark.long
@pytest.mark.timeout(2400)
def test_a_stage_without_room_for_spark_says_so_and_leaves_nothing_half_done(
    undisturbed: Left, spark: SparkSession, stack: Settings, tmp_path: Path
) -> None:
    points, scratch = Points(spark, stack, tmp_path), stack.data_dir / "spark"
    for stage in STAGES:
        before = points.visible()
        told = failed(with_small_disk(scratch, "200k", points.command(stage)))
        assert f"MB are free at {scratch}" in told, stage
        assert points.visible() == before, stage
        points.finish(stage)
    assert not points.left().differs(undisturbed)


@needs_small_disks
@pytest.mark.long
@pytest.mark.timeout(2400)
def test_a_stage_that_fills_the_disk_of_s3_says_so_and_leaves_nothing_half_done(
    undisturbed: Left, spark: SparkSession, stack: Settings, tmp_path: Path
) -> None:
    with small_s3(stack, "16m") as disk:
        points = Points(disk.session(spark), disk.settings, tmp_path)
        for stage, left_bytes in LEFT_BYTES.items():
            before = points.visible()
            with disk.full(but_bytes=left_bytes):
                told = failed(disk.seeing(points.command(stage)), disk.environment())
            assert f"MB are free at {stack.data_dir}/s3" in told, stage
            assert points.visible() == before, stage
            points.finish(stage)
        assert not points.left().differs(undisturbed)


def failed(command: list[str], environment: Mapping[str, str] = os.environ) -> str:
    """Run a stage that fails; what it tells people, which is no traceback."""
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=400, check=False)
    told = done.stdout + done.stderr
    assert done.returncode == 1, told
    assert "no space is left on a disk" in told, told
    assert "Traceback" not in told, told
    return told
