import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deeplambda.cli import build, main
from deeplambda.errors import ConfigurationError
from deeplambda.stack import commands


def test_help_names_every_command_without_loading_the_layers() -> None:
    shown = CliRunner().invoke(build(["--help"]), ["--help"]).output
    for name in ("up", "down", "status", "logs", "doctor", "stack", "data", "batch", "model", "speed", "serve", "sql"):
        assert f" {name} " in shown
    code = (
        "import sys, deeplambda.cli as c; c.build(['--help']); print({'pyspark', 'torch', 'flask'} & set(sys.modules))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert loaded.strip() == "set()"


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


def test_help_is_quick() -> None:
    code = "import resource, deeplambda.cli as c; c.build(['--help']); print(resource.getrusage(0).ru_utime)"
    took_s = float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert took_s < 1.5
