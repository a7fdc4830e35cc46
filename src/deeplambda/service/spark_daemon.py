"""The process that Spark forks its Python workers from, with the libraries that they need already imported.

Spark's JVM starts it as `python -m`, once for each driver or executor, because `deeplambda.adapters.lake` names it as
`spark.python.daemon.module`. Spark ends a worker that has been idle for a minute; without this module the first task
after each pause would wait for seconds until a new worker has imported its libraries.
"""

import gc

import pandas as pd  # noqa: F401
import pyarrow as pa  # noqa: F401
from pyspark import worker  # noqa: F401
from pyspark.daemon import manager

from deeplambda.adapters import model_service  # noqa: F401

if __name__ == "__main__":
    gc.freeze()  # the collector would write to the memory pages that workers share, and so copy them
    manager()
