"""Errors over HTTP: every one is `application/problem+json` (RFC 9457), whatever raised it."""

import logging
import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from flask import Flask, Response, request
from gunicorn.http.errors import (
    LimitRequestHeaders,
    LimitRequestLine,
    NoMoreData,
    ParseException,
    UnsupportedTransferCoding,
)
from pydantic_core import from_json, to_json
from werkzeug.exceptions import HTTPException, RequestTimeout
from werkzeug.http import HTTP_STATUS_CODES

from deeplambda.errors import (
    BadInput,
    Conflict,
    DeadlinePassed,
    DeepLambdaError,
    Forbidden,
    InvalidEvent,
    NotReady,
    Overloaded,
    Unauthorized,
    UnknownApplication,
)

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 2

_STATUS: tuple[tuple[type[DeepLambdaError], HTTPStatus], ...] = (  # first match wins: the narrow before the wide
    (InvalidEvent, HTTPStatus.UNPROCESSABLE_ENTITY),
    (UnknownApplication, HTTPStatus.NOT_FOUND),
    (BadInput, HTTPStatus.BAD_REQUEST),
    (Unauthorized, HTTPStatus.UNAUTHORIZED),
    (Forbidden, HTTPStatus.FORBIDDEN),
    (Conflict, HTTPStatus.CONFLICT),
    (Overloaded, HTTPStatus.TOO_MANY_REQUESTS),
    (DeadlinePassed, HTTPStatus.GATEWAY_TIMEOUT),
    (NotReady, HTTPStatus.SERVICE_UNAVAILABLE),
)

_OF_MALFORMED: dict[type[Exception], HTTPStatus] = {
    LimitRequestLine: HTTPStatus.REQUEST_URI_TOO_LONG,
    LimitRequestHeaders: HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    UnsupportedTransferCoding: HTTPStatus.NOT_IMPLEMENTED,
}
_ECHOED = 200
"""Characters of what a client has sent wrongly."""

_log = logging.getLogger(__name__)


def problem(status: int, title: str, detail: str, **extra: Any) -> Response:
    """A problem response. title: the kind of problem; detail: this occurrence of it; extra: further members."""
    body = {"type": _type(status, title), "title": title, "status": status, "detail": detail} | extra
    response = Response(to_json(body), status=status, mimetype=MEDIA_TYPE)
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        response.headers["Retry-After"] = str(RETRY_AFTER_S)
    if status == HTTPStatus.UNAUTHORIZED:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def register(app: Flask) -> None:
    """Answer every error of `app` with a problem: Flask's own, the platform's, those of reading a body, and unforeseen
    ones."""
    app.register_error_handler(HTTPException, _of_http_error)
    app.register_error_handler(DeepLambdaError, of_error)
    app.register_error_handler(ParseException, _of_unread)
    app.register_error_handler(NoMoreData, _of_unread)
    app.register_error_handler(Exception, _of_unforeseen_error)


def _of_http_error(exc: HTTPException) -> Response:
    status = exc.code or 500
    response = problem(status, exc.name, exc.description or exc.name)
    kept: Mapping[str, str] = {name: value for name, value in exc.get_headers() if name != "Content-Type"}
    response.headers.update(kept)  # Allow of a 405, Retry-After of a 429
    return response


def of_error(exc: DeepLambdaError) -> Response:
    """The problem of one of the platform's own errors."""
    status = next((status for kind, status in _STATUS if isinstance(exc, kind)), HTTPStatus.INTERNAL_SERVER_ERROR)
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR and not isinstance(exc, DeadlinePassed):
        _log.warning("%s", exc)
    extra = {"remedy": exc.remedy} if exc.remedy else {}
    if not isinstance(exc, Overloaded):
        return problem(status, status.phrase, exc.message, **extra)
    response = problem(status, status.phrase, exc.message, retry_after_s=round(exc.wait_s, 3), **extra)
    response.headers["Retry-After"] = str(max(1, math.ceil(exc.wait_s)))  # in whole seconds: RFC 9110, 10.2.3
    return response


def of_malformed(exc: ParseException) -> Response:
    """The problem of a request, or of its body's chunks, that gunicorn does not take."""
    status = _OF_MALFORMED.get(type(exc), HTTPStatus.BAD_REQUEST)
    return problem(status, status.phrase, str(exc)[:_ECHOED] or "the request is not valid HTTP/1.1")


def cut_off(environ: Mapping[str, Any], how: str) -> RequestTimeout | BadInput:
    """What to raise for a body that ended too early: its sender was too slow, or has sent no more."""
    if is_slow(environ):
        return RequestTimeout("the time for a request was over before all of it had come; send it more quickly")
    return BadInput(how, "send all of it")


def is_slow(environ: Mapping[str, Any]) -> bool:
    """Whether the worker has given up reading the request."""
    return getattr(environ.get("gunicorn.socket"), "is_slow", False)


def name_error(response: Response) -> None:
    """Add the member `error` to a problem, where clients of the Open Inference Protocol look for the reason."""
    if response.mimetype == MEDIA_TYPE:
        body = from_json(response.get_data())
        response.set_data(to_json(body | {"error": "; ".join(filter(None, [body["detail"], body.get("remedy")]))}))


def _of_unforeseen_error(exc: Exception) -> Response:
    _log.error("unforeseen error", exc_info=exc)
    return of_unforeseen()


def of_unforeseen() -> Response:
    """The problem of an error that nobody has foreseen, of which clients are told nothing."""
    return problem(500, HTTPStatus(500).phrase, "the service failed on this request; its log says why")


def _of_unread(exc: ParseException | NoMoreData) -> Response:
    """Of a body that gunicorn cannot read; where it was given no more, its own word for that may be anything."""
    if isinstance(exc, ParseException) and not is_slow(request.environ):
        return of_malformed(exc)
    found = cut_off(request.environ, "the chunked body is cut off")
    return _of_http_error(found) if isinstance(found, RequestTimeout) else of_error(found)


def _type(status: int, title: str) -> str:
    nothing_more = title == HTTP_STATUS_CODES.get(status)  # RFC 9457, section 4.2.1
    return "about:blank" if nothing_more else "urn:deeplambda:problem:" + "-".join(title.lower().split())
