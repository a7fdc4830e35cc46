"""The query service as a caller sees it: ask, wait, take the rows."""

import time
from collections.abc import Callable
from datetime import timedelta
from http import HTTPStatus
from typing import Any

import urllib3

from deeplambda.config import Settings, remedy_for
from deeplambda.errors import BadInput, NotReady
from deeplambda.service import tokens

_LOOK_EVERY_S = (0.1, 1.0)
_TOKEN_LIFE = timedelta(minutes=10)
_HTTP = urllib3.PoolManager(timeout=urllib3.Timeout(connect=3, read=30), retries=False)


def ask(settings: Settings, sql: str, *, store: str, limit: int, on_status: Callable[[str], None]) -> dict[str, Any]:
    """The answer to a statement, as the service's `Answer`. on_status: called with the state of a query that Hive runs.

    A query that is interrupted while it waits is cancelled. Raises: BadInput, NotReady.
    """
    reply = _call(settings, "POST", "/v1/queries", {"sql": sql, "store": store, "limit": limit})
    if "columns" in reply:
        return reply
    place, pause_s = f"/v1/queries/{reply['id']}", _LOOK_EVERY_S[0]
    try:
        while reply["status"] in ("queued", "running"):
            on_status(f"Hive: {reply['status']}")
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.5, _LOOK_EVERY_S[1])
            reply = _call(settings, "GET", place)
    except KeyboardInterrupt:
        _call(settings, "DELETE", place)
        raise
    if reply["status"] != "done":
        raise BadInput(reply["error"] or f"the query was {reply['status']}")
    answer: dict[str, Any] = reply["result"]
    return answer


def _headers(settings: Settings) -> dict[str, str]:
    """Our token, or one made for this call where the key is ours."""
    if settings.token is not None:
        return {"Authorization": f"Bearer {settings.token.get_secret_value()}"}
    if not settings.token_key.get_secret_value():
        return {}
    return {"Authorization": f"Bearer {tokens.issue(settings, 'operator', 'deeplambda sql', _TOKEN_LIFE)}"}


def _call(settings: Settings, method: str, path: str, body: Any = None) -> dict[str, Any]:
    try:
        response = _HTTP.request(method, settings.query_url + path, json=body, headers=_headers(settings))
        reply: dict[str, Any] = response.json()
    except (urllib3.exceptions.HTTPError, ValueError) as exc:
        raise NotReady(
            f"the query service at {settings.query_url} does not answer: {type(exc).__name__}",
            remedy_for("query", settings.query_url, "query_url"),
        ) from exc
    if response.status < HTTPStatus.BAD_REQUEST:
        return reply
    where = f" (line {reply['line']}, column {reply['column']})" if reply.get("line") else ""
    error = NotReady if response.status >= HTTPStatus.INTERNAL_SERVER_ERROR else BadInput
    raise error(f"{reply['detail']}{where}", reply.get("remedy") or "")
