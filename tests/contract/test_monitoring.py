"""What the alerts and the dashboard ask for is there: metrics that the code sends, tables and columns of the schema."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import sqlglot
from prometheus_client.parser import text_string_to_metric_families
from pydantic_core import from_json
from sqlglot import exp

from deeplambda.state.tables import HIDDEN_FROM_ANALYSTS, SCHEMA
from serving_layer.query_service import lag
from speed_layer.model_service.metrics import ServiceMetrics

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "deploy" / "monitoring"
STREAMS = ("src/deeplambda/service/stream_report.py", "src/deeplambda/service/lag.py")
SENT_BY = {
    ("batch", "archive"): STREAMS,
    ("batch", "train"): ("batch_layer/training_run.py",),
    ("serving", "gateway"): ("serving_layer/hive_gateway/refresher.py",),
    ("serving", "views"): ("serving_layer/views/reporting.py", "src/deeplambda/service/lag.py"),
    ("speed", "model"): ("speed_layer/model_service/metrics.py",),
    ("speed", "stream"): STREAMS,
}
"""By layer and part, the modules that measure."""
OF_ALL_APPLICATIONS = {"dead_letters", "stored", "store_p50"}


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = from_json((MONITORING / "grafana" / "dashboards" / "deeplambda.json").read_bytes())
    return found


def targets() -> Iterator[dict[str, Any]]:
    for panel in dashboard()["panels"]:
        yield from panel.get("targets", [])


def statements() -> list[str]:
    """Every SQL statement of the dashboard and of Grafana's alerts, without Grafana's own macros and variables."""
    alerts = (MONITORING / "grafana" / "alerting" / "alerts.yml").read_text()
    folded = re.findall(r"^( +)rawSql: >-\n((?:\1 +.*\n)+)", alerts, re.MULTILINE)
    asked = [" ".join(text.split()) for _, text in folded]
    assert len(asked) == alerts.count("rawSql:"), "every statement is found"
    asked += [target["rawSql"] for target in targets() if "rawSql" in target]
    asked += [variable["query"] for variable in dashboard()["templating"]["list"]]
    replaced = [re.sub(r"\$__timeFilter\((\w+)\)", r"\1 > 0", each) for each in asked]
    return [
        re.sub(r"\$__timeGroup\((\w+), '\w+'\)", r"\1", each).replace("$application", "digits") for each in replaced
    ]


def names_in(statement: str) -> set[str]:
    """The metrics that a statement names."""
    listed = " ".join(re.findall(r"\bname IN \(([^)]*)\)", statement))
    return {*re.findall(r"\bname = '(\w+)'", statement), *re.findall(r"'(\w+)'", listed)}


def expressions() -> str:
    """All PromQL, as one text."""
    return "\n".join([(MONITORING / "alerts.yml").read_text(), *(each["expr"] for each in targets() if "expr" in each)])


@cache
def exposed() -> dict[str, set[str]]:
    """What the services show to Prometheus once they have something to show: names of samples, and their labels."""
    metrics = ServiceMetrics(("digits",))
    metrics.answered("/v1/models/<name>:predict", "POST", 200, 0.01, "digits")
    metrics.scored("digits", 1, 10, 0.01, [])
    shown = metrics.exposition().decode() + lag.exposition_of({"digits": {"stream": lag.Waiting(1, {0: 1})}}).decode()
    return {
        sample.name: set(sample.labels) for family in text_string_to_metric_families(shown) for sample in family.samples
    }


@cache
def measured(module: str) -> re.Pattern[str]:
    """Matches the strings in a module, with anything in the place of what an f-string fills in."""
    patterns = set()
    for node in ast.walk(ast.parse((ROOT / module).read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            patterns.add(re.escape(node.value))
        elif isinstance(node, ast.JoinedStr):
            patterns.add(
                "".join(re.escape(str(v.value)) if isinstance(v, ast.Constant) else "[^_]+" for v in node.values)
            )
    return re.compile("|".join(patterns))


def test_every_metric_asked_of_prometheus_is_exposed() -> None:
    asked = set(re.findall(r"\bdeeplambda_\w+", expressions()))
    assert asked
    assert asked <= set(exposed())


def test_every_label_asked_of_prometheus_is_there() -> None:
    asked = re.findall(r"\b(deeplambda_\w+)\{([^}]*)\}", expressions())
    assert asked
    for name, selected in asked:
        assert set(re.findall(r"(\w+)[=!]", selected)) <= exposed()[name], name


def test_every_job_asked_for_is_scraped() -> None:
    jobs = set(re.findall(r"job_name: (\w+)", (MONITORING / "prometheus.yml").read_text()))
    asked = set(re.findall(r'job="(\w+)"', expressions()))
    assert asked
    assert asked <= jobs


@pytest.mark.parametrize("statement", statements())
def test_every_statement_reads_tables_and_columns_that_an_analyst_may(statement: str) -> None:
    tree = sqlglot.parse_one(statement, dialect="mysql")
    of_table = {table.alias_or_name: table.name for table in tree.find_all(exp.Table)}
    assert set(of_table.values()) <= set(SCHEMA.tables) - HIDDEN_FROM_ANALYSTS
    for column in tree.find_all(exp.Column):
        tables = [of_table[column.table]] if column.table else of_table.values()
        assert any(column.name in SCHEMA.tables[table].columns for table in tables), column


@pytest.mark.parametrize("statement", [each for each in statements() if "FROM metrics" in each])
def test_every_metric_asked_for_is_measured(statement: str) -> None:
    parts = re.findall(r"layer = '(\w+)' AND part = '(\w+)'", statement)
    names = names_in(statement)
    assert parts, "it says of which parts"
    assert names, "it says which metrics"
    for part in parts:
        for name in names:
            assert any(measured(module).fullmatch(name) for module in SENT_BY[part]), (part, name)


@pytest.mark.parametrize(
    "statement", [each["rawSql"] for each in targets() if "FROM metrics" in each.get("rawSql", "")]
)
def test_a_panel_shows_of_what_is_measured_by_application_the_chosen_one_alone(statement: str) -> None:
    if not names_in(statement) <= OF_ALL_APPLICATIONS:
        assert "application = '$application'" in statement


def test_a_prediction_alone_counts_where_requests_that_fail_or_are_refused_raise_an_alarm() -> None:
    posts = re.findall(r'@app\.post\("([^"]+)"', (ROOT / "speed_layer/model_service/web.py").read_text())
    gets = re.findall(r'@app\.get\("([^"]+)"', (ROOT / "speed_layer/model_service/web.py").read_text())
    asked = re.findall(r"deeplambda_model_service_requests_total\{([^}]*)\}", (MONITORING / "alerts.yml").read_text())
    assert len(asked) == 4
    for selected in asked:
        (route,) = re.findall(r'route=~"([^"]+)"', selected)
        assert all(re.fullmatch(route, each) for each in posts)
        assert not any(re.fullmatch(route, each) for each in (*gets, "none"))


def test_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(at["x"] + column, at["y"] + line) for column in range(at["w"]) for line in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
