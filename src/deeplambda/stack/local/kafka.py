"""Kafka: one KRaft node that is broker and controller."""

import os
import subprocess
from pathlib import Path

from deeplambda.config import Settings, host_of, port_of
from deeplambda.errors import ConfigurationError
from deeplambda.jvm.commands import java_command
from deeplambda.jvm.files import write_private
from deeplambda.jvm.ivy import java_program
from deeplambda.jvm.jars import component_jars
from deeplambda.jvm.log4j import console_logging
from deeplambda.stack.broker import durable_defaults
from deeplambda.stack.local.ports import kafka_controller_port

_LOG_LEVELS = {"kafka.server.KafkaRaftServer": "info"}
HEAP_MB = 512
_CLUSTER_ID = "deeplambda-local-stack"  # 22 characters, as long as the base64 of a UUID
TOOLS = {
    "kafka-console-consumer": "org.apache.kafka.tools.consumer.ConsoleConsumer",
    "kafka-console-producer": "org.apache.kafka.tools.ConsoleProducer",
    "kafka-consumer-groups": "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand",
    "kafka-topics": "org.apache.kafka.tools.TopicCommand",
}


def prepare(settings: Settings) -> None:
    """Before each start: write the broker's configuration, and format its storage if that is new."""
    write_private(_folder(settings) / "log4j2.properties", console_logging(_LOG_LEVELS))
    properties = write_private(_folder(settings) / "server.properties", server_properties(settings))
    if (_folder(settings) / "data" / "meta.properties").exists():
        return
    format_storage = _java(settings, "kafka.tools.StorageTool", "format", "-t", _CLUSTER_ID, "-c", str(properties))
    done = subprocess.run(format_storage, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ConfigurationError(
            f"Kafka's storage could not be formatted: {(done.stderr or done.stdout).strip()[-500:]}",
            f"look at {_folder(settings)}; its folder 'data' may be left from another version",
        )


def command(settings: Settings) -> list[str]:
    return _java(settings, "kafka.Kafka", str(_folder(settings) / "server.properties"))


def server_properties(settings: Settings) -> str:
    """The broker's configuration: durable defaults, one replica of everything, topics only made on purpose."""
    host, port = host_of(settings.kafka_bootstrap), port_of(settings.kafka_bootstrap)
    controller = f"{host}:{kafka_controller_port(settings)}"
    values = durable_defaults(settings) | {
        "process.roles": "broker,controller",
        "node.id": 1,
        "controller.quorum.voters": f"1@{controller}",
        "listeners": f"PLAINTEXT://{host}:{port},CONTROLLER://{controller}",
        "advertised.listeners": f"PLAINTEXT://{host}:{port}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "PLAINTEXT",
        "log.dirs": _folder(settings) / "data",
    }
    return "".join(f"{name}={value}\n" for name, value in values.items())


def run_tool(settings: Settings, name: str, arguments: list[str]) -> None:
    """Become one of Kafka's own command line tools; it is told the broker's address unless `arguments` name one."""
    if name not in TOOLS:
        raise ConfigurationError(f"no Kafka tool {name!r}", f"there are {', '.join(TOOLS)}")
    if not any(argument.startswith("--bootstrap-server") for argument in arguments):
        arguments = ["--bootstrap-server", settings.kafka_bootstrap, *arguments]
    os.execv(java_program(), _java(settings, TOOLS[name], *arguments))  # noqa: S606


def _java(settings: Settings, main_class: str, *arguments: str) -> list[str]:
    return java_command(
        main_class,
        component_jars(settings, "kafka"),
        heap_mb=HEAP_MB,
        scratch=_folder(settings) / "tmp",
        properties={"log4j2.configurationFile": (_folder(settings) / "log4j2.properties").as_uri()},
        arguments=arguments,
    )


def _folder(settings: Settings) -> Path:
    return settings.data_dir / "kafka"
