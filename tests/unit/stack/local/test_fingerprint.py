"""What makes `deeplambda up` start a part anew."""

from pathlib import Path

import pytest
from pydantic import SecretStr

from deeplambda.config import Settings
from deeplambda.loading import platform_code
from deeplambda.stack.local.fingerprint import changes, fingerprint, keep, kept, why_restarted
from deeplambda.stack.local.parts import PARTS, part_named
from deeplambda.stack.local.supervisor import as_environment


@pytest.fixture
def deployed(settings: Settings, tmp_path: Path) -> Settings:
    """Settings with an application of the test's own."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "application.py").write_text("broken(")
    return settings.model_copy(update={"applications": ("mine",), "applications_dir": tmp_path})


def changed_parts(before: Settings, after: Settings) -> set[str]:
    names = [part for part in PARTS if part.name in {"gateway", "model", "stream", "archive", "views", "query"}]
    return {part.name for part in names if changes(fingerprint(before, part), fingerprint(after, part))}


def test_every_setting_that_a_part_reads_is_one() -> None:
    assert {name for part in PARTS for name in part.reads} <= set(Settings.model_fields)


def test_the_stores_do_not_depend_on_applications() -> None:
    for name in ("kafka", "s3", "mysql", "metastore"):
        assert "applications" not in part_named(name).reads
        assert not part_named(name).runs_applications


def test_nothing_changed_is_nothing_to_restart(deployed: Settings) -> None:
    assert changed_parts(deployed, deployed) == set()


def test_a_new_application_restarts_those_that_serve_applications_and_says_so(deployed: Settings) -> None:
    more = deployed.model_copy(update={"applications": ("mine", "other")})
    assert changed_parts(deployed, more) == {"gateway", "model", "stream", "archive", "views", "query"}
    before, now = (fingerprint(each, part_named("archive")) for each in (deployed, more))
    assert why_restarted(changes(before, now), before, now) == "applications changed, code of other is new"


def test_changed_code_restarts_those_that_run_it(deployed: Settings) -> None:
    before = fingerprint(deployed, part_named("archive")), fingerprint(deployed, part_named("views"))
    (deployed.applications_dir / "mine" / "application.py").write_text("changed(")
    assert changes(before[0], fingerprint(deployed, part_named("archive"))) == ["code of mine"]
    assert changes(before[1], fingerprint(deployed, part_named("views"))) == []


@pytest.mark.parametrize("name", ["gateway", "model", "stream", "archive", "generations", "views", "query"])
def test_a_part_is_started_with_code_of_the_platform_and_its_layer(settings: Settings, name: str) -> None:
    part = part_named(name)
    layer = part.command(settings)[-1].partition(".")[0]
    assert fingerprint(settings, part)["code of the platform"] == platform_code("deeplambda", layer)


def test_changed_code_of_the_platform_restarts_what_runs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (package := tmp_path / "some_layer").mkdir()
    (package / "__init__.py").write_text("")
    (package / "Part.java").write_text("class Part {}")
    before = platform_code("some_layer")
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "part.pyc").write_bytes(b"compiled")
    platform_code.cache_clear()
    assert platform_code("some_layer") == before
    (package / "Part.java").write_text("class Part { int more; }")
    platform_code.cache_clear()
    assert platform_code("some_layer") != before


def test_a_changed_secret_is_noticed_and_not_written_down(deployed: Settings) -> None:
    before = fingerprint(deployed, part_named("views"))
    after = deployed.model_copy(update={"mysql_views_password": SecretStr("hidden-away")})
    now = fingerprint(after, part_named("views"))
    assert changes(before, now) == ["mysql_views_password"]
    keep(after, "views", now)
    assert "hidden-away" not in (after.data_dir / "run" / "views.started.json").read_text()


def test_a_part_whose_start_is_not_known_is_started_anew(deployed: Settings) -> None:
    now = fingerprint(deployed, part_named("views"))
    assert kept(deployed, "views") is None
    assert changes(kept(deployed, "views"), now)
    keep(deployed, "views", now)
    assert changes(kept(deployed, "views"), now) == []


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (("digits", "fashion"), '["digits","fashion"]'),
        (SecretStr("x"), None),
        (None, ""),
        (True, "true"),
        (5, "5"),
        ("local[2,4]", "local[2,4]"),
    ],
)
def test_settings_reach_parts_as_their_environment(value: object, text: str | None) -> None:
    assert as_environment(value) == text
