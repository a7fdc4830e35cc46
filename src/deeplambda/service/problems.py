"""Errors over HTTP: every one is `application/problem+json` (RFC 9457), whatever raised it."""

import logging
import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from flask import Flask, Response
from pydantic_core import from_json, to_json
from werkzeug.exceptions import HTTPException
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
    """Answer every error of `app` with a problem: Flask's own, the platform's, and unforeseen ones."""
    app.register_error_handler(HTTPException, _of_http_error)
    app.register_error_handler(DeepLambdaError, of_error)
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


def name_error(response: Response) -> None:
    """Add the member `error` to a problem, where clients of the Open Inference Protocol look for the reason."""
    if response.mimetype == MEDIA_TYPE:
        body = from_json(response.get_data())
        response.set_data(to_json(body | {"error": "; ".join(filter(None, [body["detail"], body.get("remedy")]))}))


def _of_unforeseen_error(exc: Exception) -> Response:
    _log.error("unforeseen error", exc_info=exc)
    return problem(500, HTTPStatus(500).phrase, "the service failed on this request; its log says why")


def _type(status: int, title: str) -> str:
    nothing_more = title == HTTP_STATUS_CODES.get(status)  # RFC 9457, section 4.2.1
    return "about:blank" if nothing_more else "urn:deeplambda:problem:" + "-".join(title.lower().split())
