"""Hive, by PyHive: the Hive gateway's SQL over the lake and over MySQL, as a read-only analyst.

Any tool connects with `hive://analyst:PASSWORD@127.0.0.1:10000/default?auth=CUSTOM`. PyHive's own dialect runs
SELECTs there; to look up tables and columns as well (`inspect`, reflection) write `hive+deeplambda://`, or import this
module, which gives the name `hive://` to the dialect in `deeplambda.adapters.hive_dialect`.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial

from pyhive import hive
from pyhive.exc import Error as PyHiveError
from pyhive.sasl_compat import PureSASLClient
from sqlalchemy import Engine, create_engine
from sqlalchemy.dialects import registry
from sqlalchemy.exc import DBAPIError
from thrift.Thrift import TException
from thrift.transport.TSocket import TSocket
from thrift.transport.TTransport import TTransportException
from thrift_sasl import TSaslClientTransport

from deeplambda.config import Settings, port_of
from deeplambda.errors import BadInput, ConfigurationError, DeepLambdaError, NotReady

ACCOUNT = "analyst"

_TIMEOUT_S = 130
"""Longer than the gateway's own limit on a query, so that a slow query ends with the gateway's error message."""

_NO_SESSION = ("Invalid SessionHandle", "Failed to open new session", "stopped SparkContext")
"""Error messages of a gateway that was restarted or is about to stop."""
_MODEL_NOT_READY = "Error running query: NotReady: "
_REASON = re.compile(r"\[[A-Z][A-Z0-9_.]*\] (?!org\.|java\.)[^\n]+")
"""Spark's error class and sentence. The `(?!` skips an earlier error class, which a Java class name follows."""

registry.register("hive", "deeplambda.adapters.hive_dialect", "GatewayDialect")


def connect(settings: Settings) -> hive.Connection:
    """A PyHive connection as the analyst; it gives up on a gateway that stops answering. Raises: as `hive_errors`."""
    host = settings.hive_address.rpartition(":")[0]
    socket = TSocket(host, port_of(settings.hive_address))
    socket.setTimeout(_TIMEOUT_S * 1000)
    password = settings.analyst_password.get_secret_value()
    sasl = partial(PureSASLClient, host=host, username=ACCOUNT, password=password)
    with hive_errors():
        return hive.Connection(thrift_transport=TSaslClientTransport(sasl, "PLAIN", socket), username=ACCOUNT)


@cache
def engine(settings: Settings) -> Engine:
    """A pooled SQLAlchemy engine on the gateway, as the analyst."""
    return create_engine("hive://", creator=partial(connect, settings), pool_pre_ping=True, pool_recycle=1800)


@contextmanager
def hive_errors() -> Iterator[None]:
    """PyHive's, Thrift's and SQLAlchemy's errors as NotReady, BadInput or ConfigurationError."""
    try:
        yield
    except (PyHiveError, TException, DBAPIError, EOFError, OSError) as exc:
        raise translation(exc) from exc


def translation(exc: Exception) -> DeepLambdaError:
    """The platform's error for one of PyHive, Thrift or SQLAlchemy."""
    origin = exc.orig if isinstance(exc, DBAPIError) and exc.orig else exc
    if isinstance(origin, TTransportException) and "Bad status" in str(origin):
        return ConfigurationError(
            f"the Hive gateway refused the account {ACCOUNT!r}",
            "see the gateway's log; 'deeplambda serve url' says which file has its password",
        )
    status = getattr(origin.args[0], "status", None) if isinstance(origin, PyHiveError) and origin.args else None
    if status is None or any(each in (status.errorMessage or "") for each in _NO_SESSION):
        return NotReady(f"the Hive gateway does not answer: {origin}", "see 'deeplambda status'")
    return refusal(status.errorMessage)


def refusal(message: str | None) -> DeepLambdaError:
    """The platform's error for what the gateway says of a statement that failed."""
    reason = readable(message)
    if _MODEL_NOT_READY in reason:  # raised by predict_<application> while the model service does not answer
        return NotReady(reason.partition(_MODEL_NOT_READY)[2], "try again in a few seconds; see 'deeplambda status'")
    return BadInput(reason, "fix the statement")


def readable(message: str | None) -> str:
    """Spark's error message for a statement, without Java class names, query plan and stack trace."""
    text = message or "the gateway gives no reason"
    reason = _REASON.search(text)
    return (reason[0] if reason else text.strip().partition("\n")[0]).rstrip(";")
