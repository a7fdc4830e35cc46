"""docker compose: what people start first runs the demo, loses nothing when killed, and is closed to strangers."""

import re
import shutil
import subprocess
import uuid

import pytest
import urllib3
from pydantic import SecretStr
from pydantic_core import from_json
from sqlalchemy import text

from deeplambda.adapters import hive, mysql
from deeplambda.config import Settings, secret_fields
from deeplambda.errors import ConfigurationError
from tests.compose.conftest import ROOT, UNREACHABLE, Compose
from tests.traffic import eventually, producer

OLD = "/usr/bin/docker-compose"
"""Debian's; elsewhere on the path there may be another of that name."""


def test_every_part_is_healthy(compose: Compose) -> None:
    found = {each["Service"]: each for each in compose.containers()}
    ended = {name for name, each in found.items() if each["State"] == "exited"}
    assert ended == {"provision", "secrets"}
    assert all(found[name]["ExitCode"] == 0 for name in ended)
    assert {each["Health"] for name, each in found.items() if name not in ended} == {"healthy"}
    print(f"\nbuilt in {compose.seconds['build']:.0f} s, all healthy in {compose.seconds['up']:.0f} s")
    print(compose("stats", "--no-stream", "--format", "table {{.Name}}\t{{.MemUsage}}"))


def test_the_demo_loses_and_doubles_nothing(demo: str) -> None:
    print(demo[-4000:])
    for row in ("predictions in MySQL (real-time view)", "events archived", "predictions in the batch view"):
        assert re.search(rf"{re.escape(row)}\W+10,000\b", demo), row
    for row in ("events lost", "events duplicated", "events dead-lettered"):
        assert re.search(rf"{row}\W+0\b", demo), row


def test_a_prediction_by_rest_through_nginx(client: Settings, demo: str) -> None:
    url = f"{client.model_url}/v1/models/digits:predict"
    good = urllib3.request("POST", url, json={"instances": [{"image": "AAAA" * 261 + "AA=="}]})
    assert (good.status, len(good.json()["predictions"])) == (200, 1), good.data


def test_sql_on_both_stores(client: Settings, demo: str) -> None:
    with mysql.engine(client, "analyst").connect() as recent, hive.engine(client).connect() as archive:
        assert recent.scalar(text("SELECT count(*) FROM model_versions")) == 1
        assert archive.execute(text("SELECT count(*) FROM lake.digits.examples")).scalar_one() > 1000


def test_who_has_no_password_is_refused(compose: Compose, client: Settings) -> None:
    from kafka import KafkaAdminClient, KafkaProducer
    from kafka.errors import KafkaError

    producer(client).close()  # who has it gets in: what follows is refused, and not just out of reach
    with pytest.raises(KafkaError):
        KafkaAdminClient(bootstrap_servers=client.kafka_bootstrap, bootstrap_timeout_ms=3000, request_timeout_ms=3000)
    known = {"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "PLAIN", "sasl_plain_username": "producer"}
    with pytest.raises(KafkaError):
        KafkaProducer(
            bootstrap_servers=client.kafka_bootstrap, bootstrap_timeout_ms=3000, sasl_plain_password="wrong", **known
        )
    stranger = client.model_copy(update={"analyst_password": SecretStr("wrong")})
    with (
        pytest.raises(ConfigurationError, match="Access denied for user 'analyst'"),
        mysql.mysql_errors(),
        mysql.engine(stranger, "analyst").connect(),
    ):
        pass


def test_a_producer_writes_events_and_nothing_else(client: Settings) -> None:
    from kafka.errors import TopicAuthorizationFailedError

    sender = producer(client)
    try:
        with pytest.raises(TopicAuthorizationFailedError):
            sender.send("deeplambda.champions", key=b"digits", value=b"{}").get(timeout=20)
        assert sender.send("digits.labels", key=b"compose", value=b'{"event_id":"compose","label":"1"}').get(timeout=20)
    finally:
        sender.close()


def test_the_analysts_side_reaches_neither_kafka_nor_s3(compose: Compose) -> None:
    knock = "import socket,sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 3)"
    inside = "stream"  # the same question from where they are reachable: it tells that the question is a good one
    for host, port in (("kafka", "9092"), ("s3", "8333")):
        compose("exec", "-T", inside, "python", "-c", knock, host, port)
        refused = compose("exec", "-T", "query", "python", "-c", knock, host, port, check=False)
        assert UNREACHABLE.search(refused), refused


def test_no_container_is_root_or_writes_its_own_files(compose: Compose) -> None:
    insists = {"s3"}  # SeaweedFS's entry point starts as root, owns its data, and goes on as another user
    running = [each for each in compose.containers() if each["State"] == "running"]
    assert running
    for each in running:
        found = compose.inspect(each["Service"])
        assert found["HostConfig"]["ReadonlyRootfs"], each["Service"]
        assert found["HostConfig"]["CapDrop"] == ["ALL"], each["Service"]
        uids = {line.split()[1] for line in top(found["Id"], "pid,uid").splitlines()[1:]}
        if each["Service"] not in insists:
            assert "0" not in uids, (each["Service"], uids)


def top(container: str, columns: str) -> str:
    """The container's processes, as `ps -eo columns` shows them; the engine asks for the column `pid`."""
    command = ["docker", "top", container, "-eo", columns]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_no_secret_is_in_a_log_an_environment_or_a_command_line(compose: Compose, client: Settings) -> None:
    everything = compose("run", "--rm", "-T", "operator", "bash", "-c", "head -c 99 /secrets/deeplambda_*")
    secrets = dict(re.findall(r"==> /secrets/deeplambda_(\w+) <==\n(\S+)", everything))
    assert set(secrets) == set(secret_fields())
    secrets["planted"] = plant(compose, client)
    places = {"logs": compose("logs", "--no-color")}
    for each in compose.containers():
        found = compose.inspect(each["Service"])
        places[f"environment of {each['Service']}"] = str(found["Config"]["Env"]) + str(found["Args"])
        if each["State"] == "running":
            places[f"command lines of {each['Service']}"] = top(found["Id"], "pid,args")
    hits = [(name, place) for name, value in secrets.items() for place, found in places.items() if value in found]
    assert not hits


@pytest.mark.parametrize("profile", ["", "tools", "gpu", "monitoring", "bi", "mqtt"])
@pytest.mark.parametrize("command", [["docker", "compose"], [OLD]], ids=["v2", "1.29"])
def test_the_file_is_valid_for_every_profile(command: list[str], profile: str) -> None:
    if shutil.which(command[0]) is None:
        pytest.skip(f"there is no {command[0]}")
    version = subprocess.run([*command, "version"], capture_output=True, text=True, check=False).stdout
    if command == [OLD] and "1.29" not in version:
        pytest.skip(f"{OLD} is {version.strip()}")
    done = subprocess.run(
        [*command, *(["--profile", profile] if profile else []), "config"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "is not set" not in done.stderr


def test_models_reply_is_of_the_version_that_the_registry_names(client: Settings, demo: str) -> None:
    with mysql.engine(client, "analyst").connect() as recent:
        version = recent.scalar(text("SELECT version FROM promotions ORDER BY id DESC LIMIT 1"))
    reply = urllib3.request("GET", f"{client.model_url}/v2/models/digits")
    assert from_json(reply.data)["versions"] == [str(version)]


def plant(compose: Compose, client: Settings) -> str:
    """Show a secret of our own wherever somebody could by mistake: in a login, a header, a statement, an event."""
    planted = f"planted-{uuid.uuid4().hex}"
    stranger = client.model_copy(update={"analyst_password": SecretStr(planted), "kafka_password": SecretStr(planted)})
    for attempt in (
        mysql.engine(stranger, "analyst").connect,
        hive.engine(stranger).connect,
        lambda: producer(stranger),
    ):
        with pytest.raises(Exception):  # noqa: B017, PT011  # each library has its own; that it is refused is tested above
            attempt()
    headers = {"Authorization": f"Bearer {planted}"}
    asked = {"sql": f"CREATE USER a IDENTIFIED BY '{planted}'"}
    assert urllib3.request("POST", f"{client.query_url}/v1/queries", json=asked, headers=headers).status == 401
    said = compose("run", "--rm", "-T", "operator", "deeplambda", "sql", asked["sql"], check=False)
    assert "SELECT" in said, said
    wrong = {"instances": [{"image": 1, "password": planted}]}
    assert urllib3.request("POST", f"{client.model_url}/v1/models/digits:predict", json=wrong).status == 422
    return planted


def test_more_spark_workers_join_and_leave(compose: Compose) -> None:
    page = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8080/json/').read().decode())"

    def alive() -> int:
        workers = from_json(compose("exec", "-T", "spark-master", "python", "-c", page))["workers"]
        return sum(worker["state"] == "ALIVE" for worker in workers)

    assert alive() == 2
    try:
        compose("up", "--detach", "--no-deps", "--wait", "--scale", "spark-worker=3", "spark-worker")
        assert alive() == 3
    finally:
        compose("up", "--detach", "--no-deps", "--scale", "spark-worker=2", "spark-worker")
    assert eventually(lambda: alive() == 2, timeout_s=120, every_s=2)


def test_trials_run_on_a_ray_cluster_of_this_image(compose: Compose, demo: str) -> None:
    own_address = "import socket; s = socket.socket(type=2); s.connect(('kafka', 1)); print(s.getsockname()[0])"
    start = "exec ray start --head --block --include-dashboard false --ray-client-server-port 10001 --node-ip-address"
    token = ("-e", "RAY_AUTH_MODE=token", "-e", f"RAY_AUTH_TOKEN={compose.secret('ray_token')}")
    command = ["sh", "-c", f'{start} "$(python -c "{own_address}")"']
    head = compose("run", "--detach", "--no-deps", *token, "demo", *command).split()[-1]
    try:
        networks = from_json(
            compose.script("docker", "inspect", "--format", "{{json .NetworkSettings.Networks}}", head)
        )
        address = f"ray://{networks[f'{compose.project}_core']['IPAddress']}:10001"
        assert eventually(lambda: "Ray runtime started" in compose.script("docker", "logs", head))
        there = ("-e", f"DEEPLAMBDA_RAY_ADDRESS={address}")
        tune = ("deeplambda", "batch", "tune", "digits", "--trials", "2", "--set", "epochs=1")
        said = compose("run", "--rm", "-T", *there, "operator", *tune)
    finally:
        compose.script("docker", "rm", "--force", "--volumes", head)
    assert f"trials on {address}" in said
    assert said.splitlines()[-1].startswith("deeplambda batch train digits --set epochs=1 --set learning_rate=0.0")
