"""What the Hive gateway says, as the platform's errors."""

from types import SimpleNamespace

import pytest
from pyhive.exc import OperationalError
from thrift.transport.TTransport import TTransportException

from deeplambda.adapters.hive import hive_errors, readable, refusal
from deeplambda.errors import BadInput, ConfigurationError, NotReady

UNKNOWN_TABLE = (
    "org.apache.hive.service.cli.HiveSQLException: Error running query: [TABLE_OR_VIEW_NOT_FOUND] "
    "org.apache.spark.sql.AnalysisException: [TABLE_OR_VIEW_NOT_FOUND] The table `nope` cannot be found.\n"
    "If you did not qualify the name …; line 1 pos 14;\n'Project [*]\n\n\tat org.apache.spark.sql.hive …\n"
)
SYNTAX = (
    "Error running query: [PARSE_SYNTAX_ERROR] org.apache.spark.sql.catalyst.parser.ParseException: \n"
    "[PARSE_SYNTAX_ERROR] Syntax error at or near 'SELEC'. SQLSTATE: 42601 (line 1, pos 0)\n\n== SQL ==\nSELEC\n^^^\n"
)


def response(message: str | None) -> OperationalError:
    return OperationalError(SimpleNamespace(status=SimpleNamespace(errorMessage=message)))


@pytest.mark.parametrize(
    ("told", "read"),
    [
        (UNKNOWN_TABLE, "[TABLE_OR_VIEW_NOT_FOUND] The table `nope` cannot be found."),
        (SYNTAX, "[PARSE_SYNTAX_ERROR] Syntax error at or near 'SELEC'. SQLSTATE: 42601 (line 1, pos 0)"),
        ("Query timed out after 110 seconds\n\tat x", "Query timed out after 110 seconds"),
        (None, "the gateway gives no reason"),
    ],
)
def test_an_error_is_told_without_java(told: str | None, read: str) -> None:
    assert readable(told) == read


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (response(UNKNOWN_TABLE), BadInput),
        (response("Invalid SessionHandle: SessionHandle [1234]"), NotReady),
        (response("Failed to open new session: … Cannot call methods on a stopped SparkContext."), NotReady),
        (TTransportException(TTransportException.NOT_OPEN, "Could not connect"), NotReady),
        (
            TTransportException(TTransportException.NOT_OPEN, "Bad status: 3 (b'Error validating …')"),
            ConfigurationError,
        ),
        (EOFError(), NotReady),
        (ConnectionResetError(), NotReady),
    ],
)
def test_a_vendors_error_becomes_one_of_the_platforms(raised: Exception, expected: type[Exception]) -> None:
    with pytest.raises(expected), hive_errors():
        raise raised


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ("Error running query: NotReady: the model service does not answer", NotReady),
        (SYNTAX, BadInput),
    ],
)
def test_a_model_that_does_not_answer_is_not_the_analysts_mistake(told: str, expected: type[Exception]) -> None:
    assert type(refusal(told)) is expected
