"""Section `loading`: rows from Parquet on S3 to float32 tensors, on one core, against pyarrow alone.

The baseline: pyarrow reads the Parquet files of the table `examples`, its eight numbers of each row, with one thread,
into one float32 array. Two ways of the platform's are measured against it.

`lake`: the same files through Spark into a Python worker, where the application's transform makes the array: the way
of `prepare`, of whose work the shuffle, the sort and the shard are left out. Spark decodes Parquet into columns, turns
them into rows and those into Arrow, and hands them through a socket: that is where its time goes.

`shards`: the same rows from the shards that `prepare` left, into PyTorch's tensors: the way of the trainer, each epoch
again. What the lake's way costs is paid once for a data set, what this one costs with every epoch.
"""

import time
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
from pyarrow.fs import S3FileSystem
from pyspark.sql import DataFrame

from batch_layer.data_set import data_set
from batch_layer.shard_format import MANIFEST, manifest_key, read_shard
from benchmarks.own_stack import COMMAND, STORES, fresh_stack
from benchmarks.ratio import Ratio
from benchmarks.scale.generated import APPLICATIONS, put_objects
from benchmarks.scale.stages import measured_command
from deeplambda.adapters.lake import spark_session
from deeplambda.adapters.s3 import ObjectStore
from deeplambda.application import payload_schema
from deeplambda.config import Settings, load_settings
from deeplambda.loading import pack_application
from deeplambda.records.featurizer import Featurizer

AIM = 0.8
_ROUNDS = 3


def loading(rows: int) -> list[Ratio]:
    """Rows a second of both ways, against pyarrow's."""
    folder = str(APPLICATIONS / "rows")
    with fresh_stack(*STORES):
        put_objects("rows", rows)
        for stage in ("ingest", "prepare"):
            measured_command([COMMAND, "batch", stage, folder])
        settings = load_settings()
        packed = pack_application(folder, settings)
        spark = spark_session(settings, "benchmark", {"spark.master": "local[1]"})
        dataset = data_set(spark, packed)
        examples = spark.table("lake.rows.examples")
        paths = spark.sql("SELECT file_path FROM lake.rows.examples.files").collect()
        files = [row.file_path.removeprefix("s3a://") for row in paths]
        numbers = payload_schema(packed.load().event).names
        bare = _quickest(rows, lambda: _read_by_pyarrow(settings, files, numbers))
        featurizer = Featurizer(packed.load(), code_version=packed.code_version)
        spark.sparkContext.addPyFile(str(packed.zip_file))
        lake = _quickest(rows, lambda: _through_spark(examples.select(numbers), featurizer))
        # This process's next session would look for another stack's S3 at the address of this one's.
        spark._jvm.org.apache.hadoop.fs.FileSystem.closeAll()
        spark.stop()
        shards = _quickest(rows, lambda: _read_shards(settings, dataset.id))
    return [
        Ratio(
            name=f"{rows:,} rows to tensors: {way}",
            value=bare / seconds,
            baseline_name="pyarrow reads the lake's files, one thread",
            baseline=rows / bare,
            measured=rows / seconds,
            unit="rows/s",
            aim=AIM,
            higher_is_better=True,
        )
        for way, seconds in (("the lake through Spark and transform", lake), ("shards, as the trainer reads", shards))
    ]


def _quickest(rows: int, work: Callable[[], int]) -> float:
    """Seconds of `work`, which says how many rows it has read. Raises: RuntimeError when those are not `rows`."""
    seconds = []
    for _ in range(_ROUNDS):
        begun = time.monotonic()
        if (found := work()) != rows:
            raise RuntimeError(f"{found:,} rows were read, there are {rows:,}")
        seconds.append(time.monotonic() - begun)
    return min(seconds)


def _read_by_pyarrow(settings: Settings, files: list[str], columns: list[str]) -> int:
    endpoint = settings.s3_endpoint
    store = S3FileSystem(
        endpoint_override=endpoint,
        region=settings.s3_region,
        access_key=settings.s3_access_key,
        secret_key=settings.s3_secret_key.get_secret_value(),
    )
    table = ds.dataset(files, filesystem=store).to_table(columns=columns, use_threads=False)
    array_NF = np.stack([table[name].to_numpy() for name in columns], axis=1).astype(np.float32)
    return len(array_NF)


def _through_spark(rows: DataFrame, featurizer: Featurizer) -> int:
    def featurized(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        count = sum(len(featurizer.isolated(batch).rows_N) for batch in batches)
        yield pa.RecordBatch.from_pydict({"rows": [count]})

    return sum(row["rows"] for row in rows.mapInArrow(featurized, "rows BIGINT").collect())


def _read_shards(settings: Settings, dataset: str) -> int:
    import torch

    store, rows = ObjectStore(settings), 0
    for shard in MANIFEST.validate_json(store.get(manifest_key("rows", dataset))):
        features, _ = read_shard(store.get(shard.key, sha256=shard.sha256), shard.key)
        rows += sum(len(torch.from_numpy(array)) for array in features.values())
    return rows
