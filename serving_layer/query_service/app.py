"""The routes. Every error is a problem document (RFC 9457). `openapi.document` describes them for machines."""

import secrets
import threading
from http import HTTPStatus

from cachetools import TTLCache, cached
from flask import Flask, Response, render_template, request, url_for
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ValidationError
from pydantic_core import to_json
from werkzeug.exceptions import UnsupportedMediaType

from deeplambda.adapters import mysql
from deeplambda.config import Settings, host_of
from deeplambda.errors import DeepLambdaError, Forbidden, UnknownApplication, kept
from deeplambda.service import problems, tokens
from deeplambda.service.problems import problem
from deeplambda.state.tables import HIDDEN_FROM_ANALYSTS, SCHEMA
from serving_layer.query_service import catalogue, lag, mysql_queries, openapi
from serving_layer.query_service.hive_queries import HiveQueries
from serving_layer.query_service.messages import Alive, Health, QueryRequest, Statistics
from serving_layer.query_service.mysql_queries import TimeLimitExceeded
from serving_layer.query_service.queries_table import Found, QueriesTable
from serving_layer.query_service.statistics import statistics
from serving_layer.sql.guard import BadStatement, ForbiddenStatement, Policy, check

BODY_LIMIT_BYTES = 128 * 1024
STATISTICS_KEPT_S = 2.0
"""Each page asks every three seconds, and counting hundreds of thousands of rows takes one: all that ask meanwhile are
told the same."""


def policy(settings: Settings) -> Policy:
    """What analysts may read on this platform."""
    return Policy(
        mysql_database=settings.mysql_database,
        mysql_tables=frozenset(SCHEMA.tables) - HIDDEN_FROM_ANALYSTS,
        applications=frozenset(settings.applications),
    )


def create_app(settings: Settings) -> Flask:
    """The WSGI application. Whoever makes it stops `app.extensions["hive_queries"]` at the end."""
    app = Flask(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = BODY_LIMIT_BYTES
    problems.register(app)
    app.register_error_handler(ValidationError, _invalid)
    app.register_error_handler(BadStatement, _bad_statement)
    app.register_error_handler(ForbiddenStatement, _forbidden)
    app.register_error_handler(TimeLimitExceeded, _too_long)

    reader, rules = mysql.engine(settings, "reader"), policy(settings)
    hive_queries = HiveQueries(settings, QueriesTable(mysql.engine(settings, "queries")))
    app.extensions["hive_queries"] = hive_queries

    own_names = {host_of(settings.query_url), "127.0.0.1", "localhost", "::1"}

    @app.before_request
    def let_in() -> None:
        if request.path.startswith("/v1/health"):
            return
        if not settings.require_tokens:
            if host_of(request.host) not in own_names:  # a page of that name in our user's browser asks, not our user
                raise Forbidden(f"this service is not {request.host[:64]!r}", f"ask for {settings.query_url}")
        elif request.path.startswith("/v1/"):
            tokens.authorize(settings, request.headers.get("Authorization"), "analyst", "operator")

    def named_application() -> str:
        name = request.args.get("application", next(iter(settings.applications), ""))
        if name not in settings.applications:
            raise UnknownApplication(
                f"there is no application {name[:64]!r}", f"there are {', '.join(settings.applications) or 'none'}"
            )
        return name

    @app.post("/v1/queries")
    def query() -> Response:
        if not request.is_json:
            raise UnsupportedMediaType("send the query as application/json")
        asked = QueryRequest.model_validate_json(request.get_data())
        checked = check(asked.sql, rules, None if asked.store == "auto" else asked.store, asked.limit)
        if checked.store == "mysql":
            return _json(mysql_queries.answer(reader, checked))
        query_id = hive_queries.submit(asked.sql, checked)
        response = _found(hive_queries.find(query_id), HTTPStatus.ACCEPTED)
        response.headers["Location"] = url_for("find_query", query_id=query_id)
        response.headers["Retry-After"] = "1"
        return response

    @app.get("/v1/queries/<query_id>")
    def find_query(query_id: str) -> Response:
        found = hive_queries.find(query_id)
        if found is None:
            return _no_query(query_id)
        response = _found(found)
        if found.query.status in ("queued", "running"):
            response.headers["Retry-After"] = "1"
        return response

    @app.delete("/v1/queries/<query_id>")
    def cancel_query(query_id: str) -> Response:
        if hive_queries.find(query_id) is None:
            return _no_query(query_id)
        hive_queries.cancel(query_id)
        return _found(hive_queries.find(query_id))

    @app.get("/v1/health")
    def health() -> Response:
        with mysql.mysql_errors(), reader.connect() as connection:
            connection.exec_driver_sql("SELECT 1")
        hive_queries.sweep()
        queued, running = hive_queries.counts()
        return _json(Health(queued=queued, running=running))

    @app.get("/v1/health/live")
    def live() -> Response:
        return _json(Alive())

    @app.get("/v1/applications")
    def list_applications() -> Response:
        return _json(catalogue.applications(settings, reader))

    @app.get("/v1/models")
    def list_models() -> Response:
        return _json(catalogue.models(reader, named_application()))

    @cached(TTLCache(len(settings.applications), STATISTICS_KEPT_S), condition=threading.Condition())
    def kept_statistics(name: str) -> Statistics | DeepLambdaError:
        try:
            return statistics(reader, name)
        except DeepLambdaError as exc:  # kept as well, or whoever waits would be the next to wait for MySQL
            return kept(exc)

    @app.get("/v1/statistics")
    def show_statistics() -> Response:
        found = kept_statistics(named_application())
        if isinstance(found, DeepLambdaError):
            raise kept(found)  # of the requests before it has no traceback
        return _json(found)

    @app.get("/metrics")
    def show_metrics() -> Response:
        return Response(lag.exposition(reader, settings.applications), content_type=CONTENT_TYPE_LATEST)

    @app.get("/openapi.json")
    def document() -> Response:
        return Response(to_json(openapi.document(settings.query_url)), mimetype="application/json")

    @app.get("/")
    def page() -> Response:
        nonce = secrets.token_urlsafe(16)
        response = Response(render_template("index.html", settings=settings, nonce=nonce))
        response.headers["Content-Security-Policy"] = (
            f"default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; connect-src 'self'; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        return response

    @app.after_request
    def harden(response: Response) -> Response:
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Cache-Control"] = "no-store"
        return response

    return app


def _json(message: BaseModel) -> Response:
    return Response(message.model_dump_json(), mimetype="application/json")


def _found(query: Found | None, status: int = HTTPStatus.OK) -> Response:
    return Response(query.as_json() if query else "null", status=status, mimetype="application/json")


def _no_query(query_id: str) -> Response:
    return problem(HTTPStatus.NOT_FOUND, "Not Found", f"there is no query {query_id[:64]!r}, or it was too long ago")


def _invalid(exc: ValidationError) -> Response:
    wrong = exc.errors(include_url=False, include_input=False, include_context=False)
    if any(each["type"] == "json_invalid" for each in wrong):
        return problem(HTTPStatus.BAD_REQUEST, "Bad Request", f"the body is not JSON: {wrong[0]['msg']}")
    fields = [{"field": ".".join(map(str, each["loc"])), "problem": each["msg"]} for each in wrong]
    detail = "; ".join(f"{each['field'] or 'body'}: {each['problem']}" for each in fields)
    return problem(HTTPStatus.UNPROCESSABLE_ENTITY, "Unprocessable Entity", detail, fields=fields)


def _bad_statement(exc: BadStatement) -> Response:
    where = {} if exc.line is None else {"line": exc.line, "column": exc.column}
    return problem(HTTPStatus.BAD_REQUEST, "Bad Statement", exc.message, remedy=exc.remedy, **where)


def _forbidden(exc: ForbiddenStatement) -> Response:
    return problem(HTTPStatus.FORBIDDEN, "Forbidden Statement", exc.message, remedy=exc.remedy)


def _too_long(exc: TimeLimitExceeded) -> Response:
    return problem(HTTPStatus.UNPROCESSABLE_ENTITY, "Time Limit Exceeded", exc.message, remedy=exc.remedy)
