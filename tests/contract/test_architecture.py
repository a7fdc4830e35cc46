"""docs/architecture.md says what is there: its paths, contracts and the places that it sends people to."""

import ast
import importlib
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from batch_layer.raw_objects import raw_key
from batch_layer.shard_format import manifest_key
from deeplambda.adapters import lake
from deeplambda.application import Event
from deeplambda.config import Settings
from deeplambda.records import topics
from deeplambda.records.decoding import RefusedEvent
from deeplambda.state.card import artefact_key
from deeplambda.state.tables import SCHEMA
from serving_layer.query_service import app as query_service
from speed_layer.model_service import web as model_service
from speed_layer.model_service.metrics import ServiceMetrics

ROOT = Path(__file__).parents[2]
CORE = ROOT / "src" / "deeplambda"
LAYERS = ("batch_layer", "speed_layer", "serving_layer")
CODE = [path for folder in (CORE, *(ROOT / layer for layer in LAYERS)) for path in sorted(folder.rglob("*.py"))]
PAGE = (ROOT / "docs" / "architecture.md").read_text()
ROOMS = {"adapters", "jvm", "records", "service", "stack", "state", "testing"}
AT_THE_TOP = {
    *("__init__.py", "__main__.py", "application.py", "cli.py", "clock.py", "config.py", "errors.py", "features.py"),
    *("fields.py", "idx.py", "learned.py", "loading.py", "metrics.py", "objective.py", "py.typed", "sources.py"),
    "splits.py",
}
PATH = re.compile(r"[\w.-]+(/[\w.-]+)+/?|\w[\w.-]*\.(md|py|toml|txt|yml)|Dockerfile|LICENSE|Makefile")


def quoted(text: str) -> set[str]:
    """What stands in backticks, outside code blocks."""
    return set(re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)))


def section(title: str) -> str:
    """What stands below a heading, up to the next one of its level or above."""
    marks, _, _ = title.partition(" ")
    found = re.search(rf"^{re.escape(title)}\n(.*?)(?=^#{{1,{len(marks)}}} |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert found is not None, f"architecture.md has no section {title!r}"
    return found[1]


def rows(text: str) -> list[list[str]]:
    """The cells of a section's tables, by row, without the heads."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rules = {n for n, line in enumerate(lines) if set(line) <= set("-|")}
    return [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for n, line in enumerate(lines)
        if not {n, n + 1} & rules
    ]


def tree_paths() -> Iterator[str]:
    """Every path of the tree, from the root."""
    (tree,) = re.findall(r"^```\n(.*?)^```", section("## The files"), re.DOTALL | re.MULTILINE)
    folders: list[str] = []
    for line in tree.splitlines():
        depth = (len(line) - len(line.lstrip())) // 4
        name = line.split()[0]
        yield "".join([*folders[:depth], name])
        folders[depth:] = [name]


# Paths


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_every_path_that_is_named_is_there(page: str) -> None:
    named = {each for each in quoted((ROOT / page).read_text()) if PATH.fullmatch(each)}
    assert len(named) > 20
    assert {each for each in named if not (ROOT / each).exists()} == set()


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/architecture.md"])
def test_every_link_to_a_file_leads_to_one(page: str) -> None:
    file = ROOT / page
    links = {each for each in re.findall(r"\]\(([^)#]+)\)", file.read_text()) if "://" not in each}
    assert {each for each in links if not (file.parent / each).exists()} == set()


def test_the_tree_is_of_files_that_are_there() -> None:
    assert {each for each in tree_paths() if not (ROOT / each).exists()} == set()


def test_the_tree_has_every_folder_of_code() -> None:
    folders = {f"{path.parent.relative_to(ROOT)}/" for path in CODE}
    assert folders <= set(tree_paths())


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_every_name_of_code_that_is_told_of_is_in_the_code(page: str) -> None:
    text = (ROOT / page).read_text()
    told = {each for each in quoted(text) if re.fullmatch(r"[A-Za-z_][\w.]*", each) and not PATH.fullmatch(each)}
    settings = {each for each in told if each.startswith("DEEPLAMBDA_")}
    assert {each.removeprefix("DEEPLAMBDA_").lower() for each in settings} <= set(Settings.model_fields)
    files = [*CODE, *(ROOT / "tests").rglob("*.py"), *(ROOT / "examples").rglob("*.py")]
    used = {word for file in files if file != Path(__file__) for word in re.findall(r"\w+", file.read_text())}
    names = {part for each in told - settings for part in each.split(".")}
    assert names - used == set()


def test_each_word_has_one_meaning() -> None:
    words = [row[0] for row in rows(section("## Words"))]
    assert len(words) == len(set(words))
    assert {"horizon", "part", "gate", "outbox", "announcement", "archive"} <= set(words)


def test_the_house_style_is_shown_by_code_that_is_there() -> None:
    shown = rows((ROOT / "CONTRIBUTING.md").read_text().partition("## House style")[2])
    assert len(shown) > 10
    assert [row for row in shown if row[1].strip("`") not in (ROOT / row[2].strip("`")).read_text()] == []


# Contracts


def test_topics_are_those_that_are_made() -> None:
    made = {topic.name.replace("digits.", "<application>.", 1) for topic in topics.all_topics(["digits"], 1)}
    named = {each.replace("digits.", "<application>.", 1) for each in quoted(PAGE)}
    assert {each for each in named if re.fullmatch(r"(<application>|deeplambda)\.[a-z-]+", each)} == made
    assert made == {row[0].strip("`") for row in rows(section("### Kafka topics"))}


def test_mysql_tables_are_those_of_the_schema() -> None:
    assert {row[0].strip("`") for row in rows(section("### MySQL tables"))} == set(SCHEMA.tables)


def test_iceberg_tables_are_those_that_are_created() -> None:
    named = {row[0].strip("`") for row in rows(section("### Iceberg tables"))}
    assert named == {f"lake.<application>.{table}" for table in lake.TABLES}


def test_prefixes_on_s3_are_those_that_are_written(tmp_path: Path) -> None:
    named = {row[0].strip("`").removeprefix("s3://<bucket>/") for row in rows(section("### S3"))}
    keys = [raw_key("<application>", ""), manifest_key("<application>", "d1"), artefact_key("<application>", 1, "card")]
    for key in [*keys, Settings(data_dir=tmp_path, s3_bucket="b").warehouse.removeprefix("s3a://b/")]:
        assert any(key.startswith(prefix) for prefix in named), key


def routes(app: Flask) -> set[str]:
    return {
        f"{method} {rule.rule}"
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
        if rule.endpoint != "static"
    }


def test_routes_of_the_model_service_are_those_that_it_answers(tmp_path: Path) -> None:
    app = model_service.create_app(Settings(data_dir=tmp_path), model_service.Champions({}), ServiceMetrics(()))
    assert {row[0].strip("`") for row in rows(section("### HTTP: model service"))} == routes(app)


def test_routes_of_the_query_service_are_those_that_it_answers(tmp_path: Path) -> None:
    app = query_service.create_app(Settings(data_dir=tmp_path))
    assert {row[0].strip("`") for row in rows(section("### HTTP: query service"))} == routes(app)


# Where to find


def answer(question: str) -> tuple[Path, Any]:
    """The file and the function or class that the page names."""
    found = {row[0]: row[1:3] for row in rows(section("## Where to find"))}
    path, name = (cell.strip("`") for cell in found[question])
    thing: Any = importlib.import_module(path.removeprefix("src/").removesuffix(".py").replace("/", "."))
    for attribute in name.split("."):
        thing = getattr(thing, attribute)
    assert Path(inspect.getsourcefile(inspect.unwrap(thing)) or "") == ROOT / path
    return ROOT / path, thing


def calls(tree: ast.AST) -> set[str]:
    """Names of the functions that are called, without the objects that they are attributes of."""
    return {
        called.func.attr if isinstance(called.func, ast.Attribute) else getattr(called.func, "id", "")
        for called in ast.walk(tree)
        if isinstance(called, ast.Call)
    }


def tree_of(thing: Callable[..., Any] | type) -> ast.Module:
    return ast.parse(textwrap.dedent(inspect.getsource(thing)))


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def files_that_call(name: str) -> set[Path]:
    return {path for path in CODE if name in calls(parsed(path))}


@pytest.mark.slow
def test_an_event_is_refused_where_the_page_says() -> None:
    _, decode_event = answer("Where is an event refused?")
    with pytest.raises(RefusedEvent):
        decode_event(Event, b'{"event_id": "a"}', limit_bytes=100)
    callers = {CORE / "records" / "admission.py", ROOT / "speed_layer" / "model_service" / "instances.py"}
    of_batch = {ROOT / "batch_layer" / "monitor.py", ROOT / "batch_layer" / "event_quality.py"}
    passing_over = {CORE / "testing" / "checker.py", *of_batch}  # what the stream refuses
    assert files_that_call("decode_event") - passing_over == callers


def test_the_horizon_moves_where_the_page_says() -> None:
    file, move_horizon = answer("Where does the horizon move?")
    assert {"delete", "insert", "record"} <= calls(tree_of(move_horizon))
    assert {path for path in CODE if "insert(HORIZONS)" in path.read_text()} == {file}
    assert files_that_call("move_horizon") == {ROOT / "batch_layer" / "recompute.py"}


def test_a_model_is_swapped_where_the_page_says() -> None:
    file, watch = answer("Where is a model swapped?")
    swapping = [
        method
        for method in ast.walk(tree_of(watch))
        if isinstance(method, ast.FunctionDef) and "self.current = champion" in ast.unparse(method)
    ]
    assert len(swapping) == 1
    assert "load_champion" in calls(swapping[0])
    assert files_that_call("load_champion") == {file, file.with_name("canaries.py")}


def test_a_setting_is_read_where_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, load_settings = answer("Where is a setting read?")
    monkeypatch.setenv("DEEPLAMBDA_KAFKA_PARTITIONS", "7")
    assert load_settings(tmp_path).kafka_partitions == 7
    assert files_that_call("Settings") == {file}


def test_a_topic_is_made_where_the_page_says() -> None:
    _, all_topics = answer("Where is a new Kafka topic made?")
    assert "shoes.events" in {topic.name for topic in all_topics(["shoes"], 3)}
    creating = CORE / "adapters" / "kafka.py"
    assert files_that_call("all_topics") == {creating}
    assert f"`{creating.relative_to(ROOT)}`" in section("## Where to find")


# Who may name whom


def strings(path: Path) -> Iterator[str]:
    """Every string of a module that is not a docstring."""
    tree = parsed(path)
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value


def layers_named_in(path: Path) -> set[str]:
    return {layer for text in strings(path) for layer in LAYERS if re.search(rf"\b{layer}\b", text)}


def test_deeplambda_names_no_layer_but_where_it_starts_them() -> None:
    outside_the_stack = [path for path in CORE.rglob("*.py") if CORE / "stack" not in path.parents]
    assert {path: named for path in outside_the_stack if (named := layers_named_in(path))} == {}


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_names_no_other_layer(layer: str) -> None:
    modules = (ROOT / layer).rglob("*.py")
    assert {path: named for path in modules if (named := layers_named_in(path) - {layer})} == {}


def test_nothing_lies_at_the_top_of_deeplambda_that_belongs_into_a_room() -> None:
    assert {path.name for path in CORE.iterdir() if path.is_file()} == AT_THE_TOP
    assert {path.parent.name for path in CORE.glob("*/__init__.py")} == ROOMS
