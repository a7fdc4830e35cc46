"""The document says what the routes do."""

import re
from pathlib import Path

import pytest
from flask import Flask

from deeplambda.config import Settings
from serving_layer.query_service.app import create_app
from serving_layer.query_service.openapi import document


@pytest.fixture
def app(tmp_path: Path) -> Flask:
    return create_app(Settings(data_dir=tmp_path))


def test_every_route_is_described_and_nothing_else(app: Flask) -> None:
    routes = {
        (re.sub(r"<(\w+)>", r"{\1}", rule.rule), method.lower())
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    described = {(path, method) for path, methods in document("")["paths"].items() for method in methods}
    assert described == routes


def test_operations_are_named_as_the_functions_that_answer(app: Flask) -> None:
    described = {each["operationId"] for methods in document("")["paths"].values() for each in methods.values()}
    assert described == {rule.endpoint for rule in app.url_map.iter_rules()}


def test_every_reference_leads_somewhere() -> None:
    made = document("")
    references = set(re.findall(r"#/components/schemas/(\w+)", str(made)))
    assert references
    assert references <= set(made["components"]["schemas"])
