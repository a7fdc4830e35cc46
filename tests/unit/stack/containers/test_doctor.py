"""The doctor for docker compose finds what is wrong in `.env`; settings that cannot be are refused by name."""

import shutil
from pathlib import Path

import pytest

from deeplambda.config import load_settings
from deeplambda.errors import ConfigurationError
from deeplambda.stack.containers.doctor import check_machine, examine_env_file

EXAMPLE = Path(__file__).parents[4] / ".env.example"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    shutil.copy(EXAMPLE, tmp_path)
    return tmp_path


def test_no_env_file_is_fine(project: Path) -> None:
    (finding,) = examine_env_file(project)
    assert finding.is_fine


@pytest.mark.parametrize(
    ("line", "found", "remedy"),
    [
        ("DEEPLAMBDA_MYSQL_PROT=3307", "nothing reads it", "write DEEPLAMBDA_MYSQL_PORT"),
        ("DEEPLAMBDA_QUERY_PORT=99999", "'99999' is no port", "give a number from 1 to 65535"),
        (
            "DEEPLAMBDA_WORKER_MEMORY=2 gigabytes",
            "'2 gigabytes' is no amount of memory",
            "give one such as 2g or 2560m",
        ),
        ("DEEPLAMBDA_WORKER_CORES=many", "'many' is no number of task slots", "give one such as 4"),
        (
            "DEEPLAMBDA_WORKER_LIMIT=2560m",
            "2560m is less than a worker may take: its memory and 1792 MiB",
            "give 3840m, or lower DEEPLAMBDA_WORKER_MEMORY or DEEPLAMBDA_WORKER_CORES",
        ),
    ],
)
def test_a_wrong_line_is_named(project: Path, line: str, found: str, remedy: str) -> None:
    (project / ".env").write_text(f"DEEPLAMBDA_BIND=127.0.0.1\nCOMPOSE_PROJECT_NAME=mine\n{line}\n")
    (finding,) = examine_env_file(project)
    assert finding.subject == f"Setting {line.partition('=')[0]}"
    assert (finding.found, finding.remedy) == (found, remedy)


@pytest.mark.parametrize(
    ("lines", "is_fine"),
    [
        ("DEEPLAMBDA_BIND=0.0.0.0", False),
        ("DEEPLAMBDA_BIND=0.0.0.0\nDEEPLAMBDA_KAFKA_HOST=0.0.0.0", False),
        ("DEEPLAMBDA_BIND=0.0.0.0\nDEEPLAMBDA_KAFKA_HOST=data.example.com", True),
        ("DEEPLAMBDA_BIND=192.0.2.7", True),
    ],
)
def test_kafka_has_to_know_where_its_clients_find_it(project: Path, lines: str, is_fine: bool) -> None:
    (project / ".env").write_text(lines)
    (finding,) = examine_env_file(project)
    assert finding.is_fine is is_fine
    assert is_fine or finding.subject == "Setting DEEPLAMBDA_KAFKA_HOST"


def test_every_example_is_right(project: Path) -> None:
    lines = [line.lstrip("#") for line in EXAMPLE.read_text().splitlines() if line.startswith("#DEEPLAMBDA")]
    assert len(lines) > 20
    (project / ".env").write_text("\n".join(lines))
    (finding,) = examine_env_file(project)
    assert finding.is_fine, finding


def test_a_machine_that_is_too_small_is_refused(tmp_path: Path) -> None:
    settings = load_settings(tmp_path)
    with pytest.raises(ConfigurationError, match="but the stack needs 99999") as refused:
        check_machine(settings.model_copy(update={"needed_memory_gib": 99_999}))
    assert "DEEPLAMBDA_NEEDED_MEMORY_GIB" in str(refused.value.remedy)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("DEEPLAMBDA_KAFKA_PARTITIONS", "none", "DEEPLAMBDA_KAFKA_PARTITIONS: Input should be a valid integer"),
        ("DEEPLAMBDA_APPLICATIONS", "digits", 'field "applications"'),
    ],
)
def test_a_setting_that_cannot_be_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=message):
        load_settings.__wrapped__(tmp_path)
