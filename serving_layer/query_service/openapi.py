"""The OpenAPI document: the routes by hand, the messages from their models. A test holds it to the real routes."""

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from serving_layer.query_service.messages import (
    Alive,
    Answer,
    Applications,
    Health,
    Models,
    Problem,
    Query,
    QueryRequest,
    Statistics,
)

_MESSAGES: tuple[type[BaseModel], ...] = (
    *(Alive, Answer, Applications, Health, Models, Problem, Query, QueryRequest, Statistics),
)
_REF = "#/components/schemas/{model}"
_RETRY_AFTER = {"Retry-After": {"description": "seconds until it is worth to look again", "schema": {"type": "string"}}}


def document(server_url: str) -> dict[str, Any]:
    """The document, OpenAPI 3.1."""
    _, definitions = models_json_schema([(each, "serialization") for each in _MESSAGES], ref_template=_REF)
    application = {
        "name": "application",
        "in": "query",
        "description": "its name; the first one that is served when it is left out",
        "schema": {"type": "string"},
    }
    query_id = {"name": "query_id", "in": "path", "required": True, "schema": {"type": "string"}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "DeepLambda query service",
            "version": "1",
            "description": "SQL over recent (MySQL) and archived (Hive) data, models, applications and statistics.",
        },
        "servers": [{"url": server_url}],
        "paths": {
            "/v1/queries": {
                "post": {
                    "operationId": "query",
                    "summary": "Ask in SQL: MySQL answers at once, Hive with a place to look for the answer",
                    "requestBody": {"required": True, "content": _content("application/json", QueryRequest)},
                    "responses": {
                        "200": _answer("the rows", Answer),
                        "202": _answer(
                            "Hive is asked",
                            Query,
                            _RETRY_AFTER | {"Location": {"description": "of the query", "schema": {"type": "string"}}},
                        ),
                        **_problems(400, 403, 413, 415, 422, 503),
                    },
                }
            },
            "/v1/queries/{query_id}": {
                "get": {
                    "operationId": "find_query",
                    "summary": "How a query is getting on, and its rows when it is done",
                    "parameters": [query_id],
                    "responses": {"200": _answer("the query", Query, _RETRY_AFTER), **_problems(404, 503)},
                },
                "delete": {
                    "operationId": "cancel_query",
                    "summary": "End a query; one that has ended stays as it is",
                    "parameters": [query_id],
                    "responses": {"200": _answer("the query", Query), **_problems(404, 503)},
                },
            },
            "/v1/health": _get("health", "Whether the service can answer", Health),
            "/v1/health/live": _get("live", "Whether the process runs, whatever becomes of the stores", Alive),
            "/v1/applications": _get("list_applications", "The applications that are served", Applications),
            "/v1/models": _get("list_models", "Published model versions", Models, [application]),
            "/v1/statistics": _get("show_statistics", "How an application is doing now", Statistics, [application]),
            "/metrics": {
                "get": {
                    "operationId": "show_metrics",
                    "summary": "What waits in Kafka, for Prometheus",
                    "responses": {
                        "200": {
                            "description": "Prometheus's text",
                            "content": {"text/plain": {"schema": {"type": "string"}}},
                        },
                        **_problems(503),
                    },
                }
            },
            "/openapi.json": {
                "get": {
                    "operationId": "document",
                    "summary": "This document",
                    "responses": {
                        "200": {
                            "description": "OpenAPI",
                            "content": {"application/json": {"schema": {"type": "object"}}},
                        }
                    },
                }
            },
            "/": {
                "get": {
                    "operationId": "page",
                    "summary": "A page for people",
                    "responses": {
                        "200": {"description": "HTML", "content": {"text/html": {"schema": {"type": "string"}}}}
                    },
                }
            },
        },
        "components": {"schemas": definitions["$defs"]},
    }


def _get(
    operation: str, summary: str, message: type[BaseModel], parameters: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    errors = _problems(404, 422, 503) if parameters else _problems(503)
    operation_object = {
        "operationId": operation,
        "summary": summary,
        "responses": {"200": _answer(summary, message), **errors},
    }
    return {"get": operation_object | ({"parameters": parameters} if parameters else {})}


def _content(media_type: str, message: type[BaseModel]) -> dict[str, Any]:
    return {media_type: {"schema": {"$ref": _REF.format(model=message.__name__)}}}


def _answer(description: str, message: type[BaseModel], headers: dict[str, Any] | None = None) -> dict[str, Any]:
    answer = {"description": description, "content": _content("application/json", message)}
    return answer | ({"headers": headers} if headers else {})


def _problems(*statuses: int) -> dict[str, Any]:
    problem = {"description": "a problem (RFC 9457)", "content": _content("application/problem+json", Problem)}
    return {str(status): problem for status in statuses}
