"""The parent of Spark's Python workers, which imports once what they would each import anew.

Spark ends a worker that had nothing to do for a minute, so after every pause the next task would wait for seconds
until libraries are loaded; a process forked from this one has them. Spark runs it as `spark.python.daemon.module`.
"""

import gc

import pandas as pd  # noqa: F401
import pyarrow as pa  # noqa: F401
from pyspark import worker  # noqa: F401
from pyspark.daemon import manager

from deeplambda.adapters import model_service  # noqa: F401

if __name__ == "__main__":
    gc.freeze()  # what is shared with the workers stays so
    manager()
