"""Secrets for the containers: random, made at the first `docker compose up`, each where its reader alone sees it.

`/secrets/operator` holds all of them and is the one to back up. Every other folder under `/secrets` is a volume of one
service, with what that service needs and no more. All containers that read secrets run as one user id, so every file
has the mode 0600.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from deeplambda.adapters.kafka import plain_login
from deeplambda.config import Settings, secret_fields
from deeplambda.errors import ConfigurationError
from deeplambda.jvm.files import write_private
from deeplambda.stack.broker import durable_defaults
from deeplambda.stack.containers import mosquitto
from deeplambda.stack.secrets import make_missing_secrets

OPERATOR = "operator"
READERS: Mapping[str, tuple[str, ...]] = {
    "archive": ("kafka_password", "mysql_platform_password", "s3_secret_key", "spark_secret"),
    "gateway": (
        *("analyst_password", "kafka_password", "mysql_reader_password", "mysql_views_password", "s3_secret_key"),
    ),
    "generations": ("kafka_password", "mysql_platform_password", "ray_token", "s3_secret_key", "spark_secret"),
    "grafana": ("analyst_password", "grafana_admin_password"),
    "metastore": ("mysql_metastore_password", "s3_secret_key"),
    "model": ("kafka_password", "s3_secret_key", "token_key"),
    "mqtt-bridge": ("kafka_producer_password", "mqtt_bridge_password"),
    "mysql": ("mysql_root_password",),
    "query": ("analyst_password", "mysql_queries_password", "mysql_reader_password", "token_key"),
    "spark": ("spark_secret",),
    "stream": ("kafka_password", "s3_secret_key", "spark_secret"),
    "superset": ("analyst_password", "mysql_superset_password", "superset_admin_password", "superset_secret_key"),
    "views": ("kafka_password", "mysql_views_password"),
}
"""By service, the fields of the settings that it reads. Kafka's, MQTT's and S3's servers read other files."""


def hand_out(settings: Settings, root: Path) -> list[str]:
    """Make what is missing in `root/operator` and write every reader's files; returns the names of the new secrets.

    settings: with `root/operator` as their folder of secrets. Idempotent: a secret that is there stays.
    """
    made = make_missing_secrets(settings, root / OPERATOR)
    values = {field: (root / OPERATOR / f"deeplambda_{field}").read_text() for field in secret_fields()}
    # Before anything is changed: it may refuse a setting.
    broker, broker_client = kafka_properties(settings, values), client_properties(settings, values)
    for reader, fields in READERS.items():
        for field in fields:
            write_private(root / reader / f"deeplambda_{field}", values[field])
        for file in (root / reader).glob("deeplambda_*"):
            if file.name.removeprefix("deeplambda_") not in fields:  # another version's
                file.unlink()
    write_private(root / "kafka" / "server.properties", broker)
    write_private(root / "kafka" / "client.properties", broker_client)
    accounts = {"producer": values["mqtt_producer_password"], "bridge": values["mqtt_bridge_password"]}
    write_private(root / "mqtt" / "mosquitto.conf", mosquitto.configuration(settings))
    write_private(root / "mqtt" / "passwords", mosquitto.password_file(accounts))
    write_private(root / "mqtt" / "access", mosquitto.access_list(settings))
    write_private(root / "s3" / "s3.json", s3_identities(settings, values))
    return made


def kafka_properties(settings: Settings, values: Mapping[str, str]) -> str:
    """The broker's configuration, as the image `apache/kafka` takes it up from `/mnt/shared/config`.

    Every client logs in; the account `platform` may do all, the others what the access lists give them. The listener
    HOST is for clients outside the containers' networks. Raises: ConfigurationError, as `check_kafka_host` does.
    """
    check_kafka_host(settings.kafka_host_address.rpartition(":")[0])
    accounts = (("platform", values["kafka_password"]), ("producer", values["kafka_producer_password"]))
    login = plain_login(*accounts[0], *accounts)
    properties = durable_defaults(settings) | {
        "process.roles": "broker,controller",
        "node.id": 1,
        "controller.quorum.voters": "1@127.0.0.1:9093",
        "controller.listener.names": "CONTROLLER",
        "listeners": "INTERNAL://:9092,HOST://:9094,CONTROLLER://127.0.0.1:9093",
        "advertised.listeners": f"INTERNAL://{settings.kafka_bootstrap},HOST://{settings.kafka_host_address}",
        "listener.security.protocol.map": "INTERNAL:SASL_PLAINTEXT,HOST:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name": "INTERNAL",
        "sasl.enabled.mechanisms": "PLAIN",
        "sasl.mechanism.inter.broker.protocol": "PLAIN",
        "listener.name.internal.plain.sasl.jaas.config": login,
        "listener.name.host.plain.sasl.jaas.config": login,
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:platform;User:ANONYMOUS",  # anonymous: the controller, on the container's own loopback
        "log.dirs": "/var/lib/kafka/data",
    }
    return "".join(f"{name}={value}\n" for name, value in properties.items())


def check_kafka_host(host: str) -> None:
    """Raises: ConfigurationError where Kafka would tell its clients to come to `host`, and nobody can."""
    if host.strip("[] ") in ("", "0.0.0.0", "::"):  # noqa: S104  # refused
        raise ConfigurationError(
            f"Kafka would send its clients to {host!r}, which is every address of a machine and so none to come to",
            "set DEEPLAMBDA_KAFKA_HOST to this machine's name or address as clients know it, in .env",
        )


def client_properties(settings: Settings, values: Mapping[str, str]) -> str:
    """For Kafka's own command line tools in the broker's container, its health check among them."""
    login = plain_login("platform", values["kafka_password"])
    return f"security.protocol=SASL_PLAINTEXT\nsasl.mechanism=PLAIN\nsasl.jaas.config={login}\n"


def s3_identities(settings: Settings, values: Mapping[str, str]) -> str:
    """SeaweedFS's list of who may do what."""
    credentials = [{"accessKey": settings.s3_access_key, "secretKey": values["s3_secret_key"]}]
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    return json.dumps({"identities": [{"name": "deeplambda", "credentials": credentials, "actions": actions}]})
