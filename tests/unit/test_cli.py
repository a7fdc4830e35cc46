import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deeplambda.cli import build, main
from deeplambda.config import load_settings
from deeplambda.errors import ConfigurationError
from deeplambda.stack import commands


def test_help_names_every_command_without_loading_the_layers() -> None:
    shown = CliRunner().invoke(build(["--help"]), ["--help"]).output
    for name in ("up", "down", "status", "logs", "doctor", "stack", "data", "batch", "model", "speed", "serve", "sql"):
        assert f" {name} " in shown


@pytest.mark.slow
@pytest.mark.parametrize("called", ["--help", "batch"])
def test_what_takes_seconds_to_load_is_loaded_when_a_command_needs_it(called: str) -> None:
    code = f"""
import sys, deeplambda.cli
deeplambda.cli.build([{called!r}])
print({{"pyspark", "torch", "flask", "scipy.stats", "pandas"}} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_commands_of_the_stack_are_at_the_top_and_under_stack() -> None:
    at_top = CliRunner().invoke(build(["up"]), ["up", "--help"]).output
    under_stack = CliRunner().invoke(build(["stack"]), ["stack", "up", "--help"]).output
    assert "--free-ports" in at_top
    assert "--free-ports" in under_stack


@pytest.mark.parametrize("debug", [False, True])
def test_an_error_on_purpose_is_a_line_and_its_remedy(
    debug: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("DEEPLAMBDA_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("DEEPLAMBDA_DEBUG", "1" if debug else "0")
    monkeypatch.setattr(sys, "argv", ["deeplambda", "logs", "kafak"])
    if debug:
        with pytest.raises(ExceptionGroup) as raised:
            main()
        assert raised.group_contains(ConfigurationError)
    else:
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 1
        shown = capsys.readouterr().err
        assert "the stack has no part 'kafak'" in shown
        assert "Traceback" not in shown


def test_the_app_of_the_stack_has_the_tools_of_kafka() -> None:
    names = {command.name or getattr(command.callback, "__name__", "") for command in commands.app.registered_commands}
    assert names == {"up", "down", "status", "logs", "doctor", "kafka-tool"}


@pytest.mark.parametrize("command", ["up", "down", "status", "logs stream"])
def test_a_container_starts_and_looks_for_no_stack_of_its_own(
    command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DEEPLAMBDA_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("DEEPLAMBDA_LISTEN_HOST", "0.0.0.0")  # as in docker-compose.yml
    load_settings.cache_clear()
    with pytest.raises(ConfigurationError, match="this is a container"):
        build(command.split())(command.split(), standalone_mode=False)
    assert not list(tmp_path.iterdir())
