import configparser
import shlex
import stat
import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydantic import SecretStr

from deeplambda.config import Settings
from deeplambda.errors import ConfigurationError
from deeplambda.jvm.files import write_private
from deeplambda.stack import metastore
from deeplambda.stack.local import kafka, s3
from deeplambda.stack.local.parts import Part
from deeplambda.stack.local.supervisor import Supervisor, check_socket_path
from deeplambda.stack.provision import views_rights

SECRET = "top-secret & <quoted>"


@pytest.fixture
def with_secrets(settings: Settings) -> Settings:
    return settings.model_copy(
        update={"mysql_metastore_password": SecretStr(SECRET), "s3_secret_key": SecretStr("s3-secret")}
    )


def part(*command: str, **environment: str) -> Part:
    return Part(
        name="thing", title="A thing", command=lambda _: list(command), probe=lambda _: "", environment=environment
    )


def program(settings: Settings, made: Part) -> configparser.SectionProxy:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_string(Supervisor(settings).configuration([made]))
    return parser["program:thing"]


def test_words_of_a_command_arrive_as_they_are(settings: Settings) -> None:
    words = ("/opt/a folder/program", "--name=100%", 'say "hi"', "back\\slash")
    written = program(settings, part(*words))["command"]
    assert tuple(shlex.split(written.replace("%%", "%"))) == words


def test_every_process_can_be_told_to_be_of_this_stack(settings: Settings) -> None:
    environment = program(settings, part("true", EXTRA="1,5"))["environment"]
    assert f'DEEPLAMBDA_DATA_DIR="{settings.data_dir}"' in environment
    assert 'DEEPLAMBDA_PART="thing"' in environment
    assert 'EXTRA="1,5"' in environment


def test_supervisord_restarts_what_dies_and_starts_nothing_by_itself(settings: Settings) -> None:
    section = program(settings, part("true"))
    assert section["autostart"] == "false"
    assert section["autorestart"] == "true"
    assert section["killasgroup"] == "true"


def test_a_socket_path_that_the_system_has_no_room_for_is_refused_before_anything_starts(tmp_path: Path) -> None:
    check_socket_path(Path("/tmp/x/supervisor.sock"))
    with pytest.raises(ConfigurationError, match=r"bytes too long .*DEEPLAMBDA_DATA_DIR"):
        check_socket_path(Path("/tmp") / ("x" * 90) / "supervisor.sock")


def test_a_folder_whose_name_supervisord_would_misread_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="per cent sign"):
        check_socket_path(Path("/tmp/100%/supervisor.sock"))


def test_the_broker_takes_large_records_and_makes_no_topic_by_itself(settings: Settings) -> None:
    node = kafka.only_node(settings)
    lines = kafka.server_properties(settings, node, [node]).splitlines()
    assert "message.max.bytes=16777216" in lines
    assert "auto.create.topics.enable=false" in lines
    assert "listeners=PLAINTEXT://127.0.0.1:9092,CONTROLLER://127.0.0.1:9093" in lines


def test_nodes_of_a_cluster_know_one_another_and_keep_kafkas_own_topics_on_three(settings: Settings) -> None:
    cluster = [kafka.Node(n, f"127.0.0.1:{9092 + 2 * n}", f"127.0.0.1:{9093 + 2 * n}", Path(f"{n}")) for n in range(3)]
    three = settings.model_copy(update={"kafka_replication": 3})
    lines = kafka.server_properties(three, cluster[1], cluster).splitlines()
    assert "controller.quorum.voters=0@127.0.0.1:9093,1@127.0.0.1:9095,2@127.0.0.1:9097" in lines
    assert {"node.id=1", "offsets.topic.replication.factor=3", "min.insync.replicas=2"} <= set(lines)


def test_the_metastore_is_told_where_everything_is_in_well_formed_xml(with_secrets: Settings) -> None:
    root = ElementTree.fromstring(metastore.hive_site(with_secrets))
    values = {row.findtext("name"): row.findtext("value") for row in root}
    assert values["javax.jdo.option.ConnectionPassword"] == SECRET
    assert values["fs.s3a.endpoint"] == with_secrets.s3_endpoint


def test_files_with_secrets_are_for_their_owner_alone(with_secrets: Settings) -> None:
    s3.prepare(with_secrets)
    metastore.prepare(with_secrets)
    for written in ("s3/s3proxy.properties", "metastore/hive-site.xml"):
        assert stat.S_IMODE((with_secrets.data_dir / written).stat().st_mode) == 0o600


def test_replacing_a_private_file_keeps_it_private(tmp_path: Path) -> None:
    place = tmp_path / "secret"
    write_private(place, "one")
    write_private(place, "two")
    assert place.read_text() == "two"
    assert stat.S_IMODE(place.stat().st_mode) == 0o600


def test_a_private_file_that_several_write_at_once_is_one_of_theirs(tmp_path: Path) -> None:
    texts = {str(n) * 100_000 for n in range(10)}
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda text: write_private(tmp_path / "secret", text), [*texts] * 20))
    assert (tmp_path / "secret").read_text() in texts
    assert [file.name for file in tmp_path.iterdir()] == ["secret"]


def test_a_private_file_that_cannot_be_written_leaves_nothing_beside_it(tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    with pytest.raises(IsADirectoryError):
        write_private(tmp_path / "secret", "one")
    assert [file.name for file in tmp_path.iterdir()] == ["secret"]


@pytest.mark.parametrize(
    ("table", "rights"),
    [
        ("realtime_predictions", "SELECT, INSERT, UPDATE, DELETE"),
        ("recent_predictions", "SELECT, INSERT, UPDATE, DELETE"),
        ("outbox", "SELECT, UPDATE"),
        ("live_answers", "SELECT, INSERT"),
        ("horizons", "SELECT"),
    ],
)
def test_the_views_account_writes_the_views_alone(table: str, rights: str) -> None:
    assert views_rights(table) == rights
