"""The two dialects as the guard renders them: sqlglot's, corrected where the servers understand something else."""

from typing import Any, ClassVar

from sqlglot import exp
from sqlglot.dialects.mysql import MySQL
from sqlglot.dialects.spark import Spark
from sqlglot.generator import Generator


def _infix_regexp(generator: Generator, node: exp.RegexpLike) -> Any:
    return generator.binary(node, "RLIKE")


def _log(generator: Generator, node: exp.Log) -> Any:
    if node.this.name == "10" and node.expression:
        return generator.func("LOG10", node.expression)  # LOG(10, x) differs in the last digit
    return generator.log_sql(node)


class GuardedMySQL(MySQL):  # type: ignore[misc]
    """MySQL and MariaDB, which has no function REGEXP_LIKE."""

    class Generator(MySQL.Generator):  # type: ignore[misc]
        TRANSFORMS: ClassVar = MySQL.Generator.TRANSFORMS | {exp.RegexpLike: _infix_regexp, exp.Log: _log}


class GuardedSpark(Spark):  # type: ignore[misc]
    """Spark SQL, in which two quotes are one within a string, as everywhere else."""

    class Tokenizer(Spark.Tokenizer):  # type: ignore[misc]
        STRING_ESCAPES: ClassVar = ["\\", "'", '"']  # the first is what is written

    class Generator(Spark.Generator):  # type: ignore[misc]
        TRANSFORMS: ClassVar = Spark.Generator.TRANSFORMS | {exp.Log: _log}
