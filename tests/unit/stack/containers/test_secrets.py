"""Each service gets what it reads, and Kafka's clients an address that is one."""

from pathlib import Path

import pytest

from deeplambda.config import Settings
from deeplambda.errors import ConfigurationError
from deeplambda.stack.containers.secrets import READERS, hand_out


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for folder in ("operator", "kafka", "mqtt", "s3", *READERS):
        (tmp_path / folder).mkdir()
    return tmp_path


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "::", "", " "])
def test_an_address_that_no_client_can_come_to_is_refused_by_the_settings_name(
    settings: Settings, root: Path, host: str
) -> None:
    bound_to_all = settings.model_copy(update={"kafka_host_address": f"{host}:9094"})
    with pytest.raises(ConfigurationError, match="which is every address") as refused:
        hand_out(bound_to_all, root)
    assert "DEEPLAMBDA_KAFKA_HOST" in str(refused.value.remedy)


def test_clients_outside_are_sent_to_the_address_of_the_settings(settings: Settings, root: Path) -> None:
    hand_out(settings.model_copy(update={"kafka_host_address": "data.example.com:9095"}), root)
    assert ",HOST://data.example.com:9095\n" in (root / "kafka" / "server.properties").read_text()


def test_what_a_service_reads_no_more_is_taken_from_it(settings: Settings, root: Path) -> None:
    (root / "query" / "deeplambda_mysql_platform_password").write_text("of an older version")
    hand_out(settings, root)
    given = {file.name.removeprefix("deeplambda_") for file in (root / "query").iterdir()}
    assert given == set(READERS["query"])
