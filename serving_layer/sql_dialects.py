"""The two dialects as the guard renders them: sqlglot's, with what the servers understand otherwise mended."""

from typing import Any, ClassVar

from sqlglot import exp
from sqlglot.dialects.mysql import MySQL
from sqlglot.dialects.spark import Spark
from sqlglot.generator import Generator


def _infix_regexp(generator: Generator, node: exp.RegexpLike) -> Any:
    return generator.binary(node, "RLIKE")


class GuardedMySQL(MySQL):  # type: ignore[misc]
    """MySQL and MariaDB: MariaDB has no function REGEXP_LIKE."""

    class Generator(MySQL.Generator):  # type: ignore[misc]
        TRANSFORMS: ClassVar = MySQL.Generator.TRANSFORMS | {exp.RegexpLike: _infix_regexp}


class GuardedSpark(Spark):  # type: ignore[misc]
    """Spark SQL."""
