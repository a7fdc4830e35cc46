"""Superset's assets hold together: what they name is there, in the schema and in one another, and no password is."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlglot
import yaml
from sqlalchemy.engine import make_url
from sqlglot import exp

from deeplambda.adapters.lake import TABLES as LAKE
from deeplambda.records.predictions import VIEW_SCHEMA
from deeplambda.stack.containers.secrets import READERS
from deeplambda.state.tables import SCHEMA

SUPERSET = Path(__file__).parents[2] / "deploy" / "superset"
ASSETS = SUPERSET / "assets"
UNION = {*VIEW_SCHEMA.names, "view"}


def assets(kind: str) -> dict[str, dict[str, Any]]:
    return {file.stem: yaml.safe_load(file.read_text()) for file in sorted((ASSETS / kind).rglob("*.yaml"))}


DATABASES, DATASETS, CHARTS = assets("databases"), assets("datasets"), assets("charts")
(DASHBOARD,) = assets("dashboards").values()
BY_UUID = {each["uuid"]: each for each in [*DATABASES.values(), *DATASETS.values(), *CHARTS.values(), DASHBOARD]}


def columns_of(table: exp.Table) -> set[str]:
    """What the code gives a table or view."""
    if table.name == "all_predictions":
        return UNION
    if table.catalog == "lake":
        definition = re.sub(r"\{payload\}, ", "", LAKE[table.name][0])
        return set(re.findall(r"(?:^|,)\s*(\w+) [A-Z]", definition))
    return set(SCHEMA.tables[table.name].columns.keys())


def physical(dataset: dict[str, Any]) -> exp.Expr:
    names = ", ".join(f"`{column['column_name']}`" for column in dataset["columns"])
    return sqlglot.parse_one(f"SELECT {names} FROM {dataset['schema']}.{dataset['table_name']}", dialect="mysql")


def statement(dataset: dict[str, Any]) -> exp.Expr:
    if "sql" not in dataset:
        return physical(dataset)
    return sqlglot.parse_one(dataset["sql"], dialect="mysql" if dataset["source_db_engine"] == "mysql" else "spark")


def asked_for(chart: dict[str, Any]) -> Iterator[str]:
    """The columns that a chart names."""
    params = chart["params"]
    for key in ("groupby", "groupbyRows", "groupbyColumns", "all_columns"):
        yield from params.get(key, [])
    if "x_axis" in params:
        yield params["x_axis"]
    for condition in params.get("adhoc_filters", []):
        yield condition["subject"]


@pytest.mark.parametrize("name", DATASETS)
def test_what_a_dataset_reads_is_in_the_schema(name: str) -> None:
    query = statement(DATASETS[name])
    known: set[str] = set()
    for table in query.find_all(exp.Table):
        known |= columns_of(table)
    aliases = {alias.alias for alias in query.find_all(exp.Alias)}
    assert {column.name for column in query.find_all(exp.Column)} <= known | aliases


@pytest.mark.parametrize("name", DATASETS)
def test_a_dataset_lists_the_columns_that_it_selects(name: str) -> None:
    dataset = DATASETS[name]
    listed = [column["column_name"] for column in dataset["columns"]]
    assert sorted(listed) == sorted(statement(dataset).named_selects)
    assert dataset["main_dttm_col"] in {each["column_name"] for each in dataset["columns"] if each.get("is_dttm")}


@pytest.mark.parametrize("name", DATASETS)
def test_superset_would_rewrite_no_sql_on_import(name: str) -> None:
    dataset = DATASETS[name]
    backend = make_url(BY_UUID[dataset["database_uuid"]]["sqlalchemy_uri"]).get_backend_name()
    assert dataset.get("source_db_engine", backend) == backend
    assert dataset["schema"]  # else it takes the schema of its own examples


@pytest.mark.parametrize("name", CHARTS)
def test_a_chart_names_columns_and_metrics_of_its_dataset(name: str) -> None:
    chart = CHARTS[name]
    dataset = BY_UUID[chart["dataset_uuid"]]
    assert set(asked_for(chart)) <= {column["column_name"] for column in dataset["columns"]}
    params = chart["params"]
    metrics = {*params.get("metrics", []), *([params["metric"]] if "metric" in params else [])}
    assert metrics <= {metric["metric_name"] for metric in dataset["metrics"]}
    assert params["viz_type"] == chart["viz_type"]


def test_the_dashboard_shows_every_chart_once() -> None:
    tiles = [each for each in DASHBOARD["position"].values() if isinstance(each, dict) and each["type"] == "CHART"]
    assert sorted(tile["meta"]["uuid"] for tile in tiles) == sorted(chart["uuid"] for chart in CHARTS.values())
    for tile in tiles:
        assert tile["meta"]["sliceName"] == BY_UUID[tile["meta"]["uuid"]]["slice_name"]


def test_the_dashboard_is_one_tree_of_rows_that_are_full() -> None:
    position = {key: each for key, each in DASHBOARD["position"].items() if isinstance(each, dict)}
    for key, each in position.items():
        assert each["id"] == key
        for child in each.get("children", []):
            assert position[child]["parents"][-1] == key
    for row in (each for each in position.values() if each["type"] == "ROW"):
        assert sum(position[child]["meta"]["width"] for child in row["children"]) == 12


def test_filters_of_the_dashboard_name_columns_of_their_datasets() -> None:
    filters = DASHBOARD["metadata"]["native_filter_configuration"]
    targets = [target for each in filters for target in each["targets"] if target]
    assert targets
    for target in targets:
        names = {column["column_name"] for column in BY_UUID[target["datasetUuid"]]["columns"]}
        assert target["column"]["name"] in names


def test_every_asset_has_an_identity_of_its_own() -> None:
    assert len(BY_UUID) == len(DATABASES) + len(DATASETS) + len(CHARTS) + 1


@pytest.mark.parametrize("name", DATABASES)
def test_a_store_is_read_as_the_analyst_and_names_no_password(name: str) -> None:
    database = DATABASES[name]
    url = make_url(database["sqlalchemy_uri"])
    assert (url.username, url.password) == ("analyst", None)
    assert not {"password", "encrypted_extra", "masked_encrypted_extra"} & set(database)
    assert not any(database[right] for right in ("allow_dml", "allow_ctas", "allow_cvas", "allow_file_upload"))


def test_superset_reads_the_secrets_that_it_is_given() -> None:
    read = set(re.findall(r'secret\("(\w+)"\)', "".join(file.read_text() for file in SUPERSET.glob("*.py"))))
    assert read == set(READERS["superset"])
