"""The two dialects as the guard renders them: sqlglot's, corrected where the servers understand something else.

sqlglot translates between dialects, and leaves out what some other dialect does by itself. Here each is rendered as it
was read: patterns of dates and times to the letter, and arguments also where they are the default.
"""

from collections.abc import Callable
from typing import Any, ClassVar

from sqlglot import exp
from sqlglot.dialects.mysql import MySQL
from sqlglot.dialects.spark import Spark
from sqlglot.generator import Generator
from sqlglot.helper import seq_get


def _infix_regexp(generator: Generator, node: exp.RegexpLike) -> Any:
    return generator.binary(node, "RLIKE")


def _log(generator: Generator, node: exp.Log) -> Any:
    if node.this.name == "10" and node.expression:
        return generator.func("LOG10", node.expression)  # LOG(10, x) differs in the last digit
    return generator.log_sql(node)


def _regexp_like(arguments: list[Any]) -> exp.Expression:
    wrapped = [exp.Paren(this=each) if isinstance(each, exp.Binary) else each for each in arguments]
    return exp.Paren(this=exp.RegexpLike(this=seq_get(wrapped, 0), expression=seq_get(wrapped, 1)))


def _to_date(generator: Generator, node: exp.TsOrDsToDate) -> Any:
    if node.args.get("format"):
        return generator.func("TO_DATE", node.this, node.args["format"])
    return Spark.Generator.TRANSFORMS[exp.TsOrDsToDate](generator, node)


def _as_read(name: str, *arguments: str) -> Callable[[Generator, exp.Expression], Any]:
    return lambda generator, node: generator.func(name, *(node.args.get(argument) for argument in arguments))


class _Parentheses:
    """A parser's intervals of several units, which it reads as a sum: `-INTERVAL 1 HOUR 30 MINUTES` negates both."""

    def _parse_interval(self, *arguments: Any, **named: Any) -> Any:
        interval = super()._parse_interval(*arguments, **named)  # type: ignore[misc]
        return exp.Paren(this=interval) if isinstance(interval, exp.Add) else interval


class GuardedMySQL(MySQL):  # type: ignore[misc]
    """MySQL and MariaDB, which has no function REGEXP_LIKE."""

    TIME_MAPPING: ClassVar[dict[str, str]] = {}

    class Parser(_Parentheses, MySQL.Parser):  # type: ignore[misc]
        FUNCTIONS: ClassVar = MySQL.Parser.FUNCTIONS | {
            "DATE_FORMAT": lambda args: exp.TimeToStr(this=seq_get(args, 0), format=seq_get(args, 1)),
            "MONTHNAME": lambda args: exp.TimeToStr(this=seq_get(args, 0), format=exp.Literal.string("%M")),
            "REGEXP_LIKE": _regexp_like,
            "STR_TO_DATE": exp.StrToDate.from_arg_list,
        }

    class Generator(MySQL.Generator):  # type: ignore[misc]
        TRANSFORMS: ClassVar = MySQL.Generator.TRANSFORMS | {exp.RegexpLike: _infix_regexp, exp.Log: _log}


class GuardedSpark(Spark):  # type: ignore[misc]
    """Spark SQL, in which two quotes are one within a string, as everywhere else."""

    TIME_MAPPING: ClassVar[dict[str, str]] = {}

    class Tokenizer(Spark.Tokenizer):  # type: ignore[misc]
        STRING_ESCAPES: ClassVar = ["\\", "'", '"']  # the first is what is written

    class Parser(_Parentheses, Spark.Parser):  # type: ignore[misc]
        FUNCTIONS: ClassVar = Spark.Parser.FUNCTIONS | {"REGEXP_LIKE": _regexp_like, "RLIKE": _regexp_like}

    class Generator(Spark.Generator):  # type: ignore[misc]
        TABLESAMPLE_SEED_KEYWORD: ClassVar = "REPEATABLE"
        TRANSFORMS: ClassVar = Spark.Generator.TRANSFORMS | {
            exp.Log: _log,
            exp.RegexpExtract: _as_read("REGEXP_EXTRACT", "this", "expression", "group"),
            exp.StrToTime: _as_read("TO_TIMESTAMP", "this", "format"),
            exp.StrToUnix: _as_read("UNIX_TIMESTAMP", "this", "format"),
            exp.TsOrDsToDate: _to_date,
            exp.UnixToStr: _as_read("FROM_UNIXTIME", "this", "format"),
        }
