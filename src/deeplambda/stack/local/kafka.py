"""Kafka: KRaft nodes that are broker and controller at once; the local stack has one of them."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from deeplambda.config import Settings, host_of
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


class Node(NamedTuple):
    """One node of a cluster. address, controller: HOST:PORT for clients, and for the other nodes' controllers."""

    id: int
    address: str
    controller: str
    folder: Path
    heap_mb: int = HEAP_MB


def prepare(settings: Settings) -> None:
    """Before each start: write the broker's configuration, and format its storage if that is new."""
    node = only_node(settings)
    prepare_node(settings, node, [node])


def command(settings: Settings) -> list[str]:
    return node_command(settings, only_node(settings))


def prepare_node(settings: Settings, node: Node, cluster: Sequence[Node]) -> None:
    """The same for one node of `cluster`."""
    write_private(node.folder / "log4j2.properties", console_logging(_LOG_LEVELS))
    properties = write_private(node.folder / "server.properties", server_properties(settings, node, cluster))
    if (node.folder / "data" / "meta.properties").exists():
        return
    format_storage = _java(
        settings, node.folder, "kafka.tools.StorageTool", "format", "-t", _CLUSTER_ID, "-c", str(properties)
    )
    done = subprocess.run(format_storage, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ConfigurationError(
            f"Kafka's storage could not be formatted: {(done.stderr or done.stdout).strip()[-500:]}",
            f"look at {node.folder}; its folder 'data' may be left from another version",
        )


def node_command(settings: Settings, node: Node) -> list[str]:
    """The command line that runs a node which `prepare_node` has prepared."""
    return _java(settings, node.folder, "kafka.Kafka", str(node.folder / "server.properties"), heap_mb=node.heap_mb)


def server_properties(settings: Settings, node: Node, cluster: Sequence[Node]) -> str:
    """A node's configuration: durable defaults, topics only made on purpose."""
    values = durable_defaults(settings) | {
        "process.roles": "broker,controller",
        "node.id": node.id,
        "controller.quorum.voters": ",".join(f"{each.id}@{each.controller}" for each in cluster),
        "listeners": f"PLAINTEXT://{node.address},CONTROLLER://{node.controller}",
        "advertised.listeners": f"PLAINTEXT://{node.address}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "PLAINTEXT",
        "log.dirs": node.folder / "data",
    }
    return "".join(f"{name}={value}\n" for name, value in values.items())


def run_tool(settings: Settings, name: str, arguments: list[str]) -> None:
    """Become one of Kafka's own command line tools; it is told the broker's address unless `arguments` name one."""
    if name not in TOOLS:
        raise ConfigurationError(f"no Kafka tool {name!r}", f"there are {', '.join(TOOLS)}")
    if not any(argument.startswith("--bootstrap-server") for argument in arguments):
        arguments = ["--bootstrap-server", settings.kafka_bootstrap, *arguments]
    os.execv(java_program(), _java(settings, _folder(settings), TOOLS[name], *arguments))  # noqa: S606


def only_node(settings: Settings) -> Node:
    """The local stack's: its controller listens on the port after the broker's."""
    controller = f"{host_of(settings.kafka_bootstrap)}:{kafka_controller_port(settings)}"
    return Node(1, settings.kafka_bootstrap, controller, _folder(settings))


def _folder(settings: Settings) -> Path:
    return settings.data_dir / "kafka"


def _java(settings: Settings, folder: Path, main_class: str, *arguments: str, heap_mb: int = HEAP_MB) -> list[str]:
    return java_command(
        main_class,
        component_jars(settings, "kafka"),
        heap_mb=heap_mb,
        scratch=folder / "tmp",
        properties={"log4j2.configurationFile": (folder / "log4j2.properties").as_uri()},
        arguments=arguments,
    )
