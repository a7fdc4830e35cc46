"""The profiles `monitoring` and `bi` work on the stores that the demo has filled."""

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import pytest
import urllib3
import yaml
from pydantic_core import from_json
from sqlalchemy import text

from deeplambda.adapters import mysql
from deeplambda.config import Settings
from tests.compose.conftest import ROOT, Compose
from tests.traffic import eventually


@pytest.fixture(scope="module")
def prometheus(compose: Compose, demo: str) -> Iterator[str]:
    """Prometheus's address."""
    profile = ("--profile", "monitoring")
    if compose.has_stand_ins:
        compose("build", "prometheus")
    compose(*profile, "up", "--detach", "--wait", "--wait-timeout", "180", "prometheus")
    yield f"http://127.0.0.1:{compose.environment['DEEPLAMBDA_PROMETHEUS_PORT']}"
    compose(*profile, "rm", "--stop", "--force", "prometheus")


def test_prometheus_scrapes_every_replica_and_has_its_rules(compose: Compose, prometheus: str) -> None:
    compose("up", "--detach", "--wait", "--no-deps", "--scale", "model=2", "model")
    try:
        up = f"{prometheus}/api/v1/query?query=sum(up%7Bjob%3D%22model%22%7D)"
        assert eventually(lambda: samples(up) == [2.0], timeout_s=90, every_s=2), samples(up)
    finally:
        compose("up", "--detach", "--no-deps", "--scale", "model=1", "model")
    served = f"{prometheus}/api/v1/query?query=sum(deeplambda_model_service_predictions_total)"
    assert samples(served)[0] > 0
    groups = urllib3.request("GET", f"{prometheus}/api/v1/rules").json()["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    declared = yaml.safe_load((ROOT / "deploy/monitoring/alerts.yml").read_text())["groups"]
    assert {rule["name"] for rule in rules} == {rule["alert"] for group in declared for rule in group["rules"]}
    assert {rule["health"] for rule in rules} == {"ok"}


def test_no_query_of_grafanas_dashboard_fails(client: Settings, prometheus: str) -> None:
    board = from_json((ROOT / "deploy/monitoring/grafana/dashboards/deeplambda.json").read_bytes())
    targets = [(panel["title"], target) for panel in board["panels"] for target in panel.get("targets", [])]
    assert len(targets) > 20
    answered = []
    with mysql.engine(client, "analyst").connect() as recent:
        for title, target in targets:
            if "rawSql" in target:
                # As Grafana's MySQL data source fills in its macros.
                query = re.sub(r"\$__timeFilter\((\w+)\)", r"\1 > NOW() - INTERVAL 1 DAY", target["rawSql"])
                query = re.sub(r"\$__timeGroup\((\w+), '1m'\)", r"UNIX_TIMESTAMP(\1) DIV 60 * 60", query)
                rows = recent.execute(text(query.replace("$application", "digits").replace(":", r"\:"))).all()
            else:
                expression = target["expr"].replace("$__rate_interval", "5m").replace("$application", "digits")
                rows = samples(f"{prometheus}/api/v1/query?{urlencode({'query': expression})}")
            answered += [title] if rows else []  # a rate needs a minute of traffic
    assert len(answered) >= 15, answered


def samples(query: str) -> list[float]:
    """The values that a query of Prometheus answers."""
    return [float(each["value"][1]) for each in urllib3.request("GET", query).json()["data"]["result"]]


class Superset:
    """Superset's REST interface, for the person who logged in."""

    def __init__(self, address: str, password: str) -> None:
        self.address, self._headers = address, dict[str, str]()
        login = {"username": "admin", "password": password, "provider": "db", "refresh": False}
        self._headers["Authorization"] = f"Bearer {self.call('POST', '/security/login', login)['access_token']}"

    def call(self, method: str, path: str, body: Any = None) -> Any:
        reply = urllib3.request(
            method, f"{self.address}/api/v1{path}", json=body, headers=self._headers, timeout=120, retries=False
        )
        assert reply.status == 200, reply.data
        return reply.json()


@pytest.fixture(scope="module")
def superset(compose: Compose, demo: str) -> Iterator[Superset]:
    """Superset with the dashboard in it."""
    profile = ("--profile", "bi")
    if compose.has_stand_ins:
        compose(*profile, "build", "superset-base")
    compose(*profile, "build", "superset-init")
    compose(*profile, "up", "--detach", "--wait", "--wait-timeout", "300", "superset")
    address = f"http://127.0.0.1:{compose.environment['DEEPLAMBDA_SUPERSET_PORT']}"
    yield Superset(address, compose.secret("superset_admin_password"))
    compose(*profile, "rm", "--stop", "--force", "superset", "superset-init")


def test_the_dashboard_is_there_and_nobody_reads_it_without_a_password(superset: Superset) -> None:
    assert len(superset.call("GET", "/dashboard/deeplambda/charts")["result"]) == 10
    assert urllib3.request("GET", f"{superset.address}/api/v1/dashboard/deeplambda").status in (401, 404)


@pytest.mark.parametrize("chart", ["Predictions per class", "Batch view and real-time view"], ids=["mysql", "hive"])
def test_a_chart_on_each_store_has_rows(superset: Superset, chart: str) -> None:
    charts = superset.call("GET", "/dashboard/deeplambda/charts")["result"]
    (form,) = [each["form_data"] for each in charts if each["slice_name"] == chart]
    source = {"id": int(form["datasource"].split("__")[0]), "type": "table"}
    query = {"columns": [], "metrics": ["count"], "filters": [], "row_limit": 10}
    asked = {"datasource": source, "queries": [query], "result_type": "full", "result_format": "json", "force": True}
    (answer,) = superset.call("POST", "/chart/data", asked)["result"]
    assert next(iter(answer["data"][0].values())) >= 10_000, answer
