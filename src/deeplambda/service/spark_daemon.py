"""The process that Spark forks its Python workers from, with the libraries that they need already imported.

Spark's JVM starts it as `python -m`, once for each driver or executor, because `deeplambda.adapters.lake` names it as
`spark.python.daemon.module`. Spark ends a worker that has been idle for a minute; without this module the first task
after each pause would wait for seconds until a new worker has imported its libraries.
"""

import gc
import sys

# Spark begins the path with its own archives, although pyspark is installed. A worker would read their directories anew
# at every task, 40 ms of a core, and the daemon would compile pyspark's sources at every start.
for archive in [entry for entry in sys.path if entry.endswith((".zip", ".jar"))]:
    sys.path.remove(archive)
    sys.path_importer_cache.pop(archive, None)

import pandas as pd  # noqa: E402, F401
import pyarrow as pa  # noqa: E402, F401
from pyspark import worker  # noqa: E402, F401
from pyspark.daemon import manager  # noqa: E402

from deeplambda.adapters import model_service  # noqa: E402, F401

if __name__ == "__main__":
    gc.freeze()  # the collector would write to the memory pages that workers share, and so copy them
    manager()
