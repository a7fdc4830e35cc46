"""Three brokers: any one may be killed at any time, and nothing acknowledged is lost or stored twice."""

import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import cycle, takewhile
from pathlib import Path
from subprocess import CompletedProcess
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import KafkaError
from numpy.typing import NDArray
from sqlalchemy import text

from deeplambda.adapters.kafka import client_options
from deeplambda.config import Settings, load_settings
from deeplambda.jvm.jars import fetch_components
from deeplambda.records import topics
from deeplambda.stack.local.kafka import Node, node_command, prepare_node
from deeplambda.stack.local.ports import choose_free
from tests.conftest import hive_of
from tests.integration.own_model_service import OwnService, model_of
from tests.traffic import eventually, new_run, seen_ids, send_digits

Command = Callable[..., "CompletedProcess[str]"]


class Cluster:
    """Three nodes, each broker and controller, on free ports of this machine."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        port = choose_free(set(), 6)
        self.nodes = [
            Node(n, f"127.0.0.1:{port + 2 * n}", f"127.0.0.1:{port + 2 * n + 1}", folder / f"kafka-{n}", heap_mb=256)
            for n in range(3)
        ]
        self.bootstrap = ",".join(node.address for node in self.nodes)
        self.settings = settings.model_copy(update={"kafka_bootstrap": self.bootstrap, "kafka_replication": 3})
        self._running: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, node: Node) -> None:
        prepare_node(self.settings, node, self.nodes)
        with (node.folder / "log").open("ab") as log:
            self._running[node.id] = subprocess.Popen(node_command(self.settings, node), stdout=log, stderr=log)

    def kill(self, node: Node) -> None:
        self._running[node.id].send_signal(signal.SIGKILL)
        self._running.pop(node.id).wait()

    def stop(self) -> None:
        for process in self._running.values():
            process.kill()
            process.wait()

    def brokers(self) -> int:
        """How many have joined; none while nobody says."""
        try:
            with KafkaAdminClient(**client_options(self.settings)) as admin:
                return len(admin.describe_cluster()["brokers"])
        except KafkaError:
            return 0

    def replicas(self, *, in_sync: bool = False) -> set[int]:
        """How many brokers have each partition of the topics that this is about; nothing while nobody says."""
        kind = "isr_nodes" if in_sync else "replica_nodes"
        try:
            with KafkaAdminClient(**client_options(self.settings)) as admin:
                found = admin.describe_topics([topics.events("digits"), topics.predictions("digits")])
        except KafkaError:
            return set()
        return {len(partition[kind]) for topic in found for partition in topic["partitions"]}


@pytest.fixture(scope="module")
def cluster(deeplambda: Command) -> Iterator[Cluster]:
    """The local stack over three brokers, with a model of digits that nobody has trained as the champion."""
    with TemporaryDirectory(prefix="deeplambda-") as name, pytest.MonkeyPatch.context() as environment:
        folder = Path(name)
        environment.setenv("DEEPLAMBDA_DATA_DIR", str(folder / ".deeplambda"))
        load_settings.cache_clear()
        fetch_components(load_settings(), {"kafka"})
        cluster = Cluster(load_settings(), folder)
        environment.setenv("DEEPLAMBDA_KAFKA_BOOTSTRAP", cluster.bootstrap)
        environment.setenv("DEEPLAMBDA_KAFKA_REPLICATION", "3")
        environment.setenv("DEEPLAMBDA_KAFKA_PARTITIONS", "3")
        load_settings.cache_clear()
        try:
            for node in cluster.nodes:
                cluster.start(node)
            assert eventually(lambda: cluster.brokers() == 3, 120), "each writes its log into its folder"
            deeplambda("up", "--free-ports", "model", "stream", "archive", "views", "gateway")
            load_settings.cache_clear()
            cluster.settings = load_settings()
            service = OwnService(cluster.settings, folder, "digits")
            service.promote(service.publish(model_of(1)))
            yield cluster
        finally:
            deeplambda("down")
            cluster.stop()
    load_settings.cache_clear()


@pytest.fixture
def traffic(cluster: Cluster, test_images: NDArray[np.uint8]) -> Iterator["Traffic"]:
    with Traffic(cluster.settings, test_images).flowing() as traffic:
        yield traffic


class Traffic:
    """Events of one run, sent until the end of `flowing` or `stop`; the ledger is of those that were acknowledged."""

    def __init__(self, settings: Settings, images_NHW: NDArray[np.uint8]) -> None:
        self._settings, self._images = settings, images_NHW
        self.run = new_run("brokers")
        self._stopped = threading.Event()

    @contextmanager
    def flowing(self) -> Iterator["Traffic"]:
        images = takewhile(lambda _: not self._stopped.is_set(), cycle(self._images))
        with ThreadPoolExecutor(1) as pool:
            self._sending = pool.submit(send_digits, self._settings, self.run, images, rate=100)
            try:
                yield self
            finally:
                self._stopped.set()

    def goes_on(self) -> bool:
        """Whether some more events come through to MySQL."""
        before = self._stored()
        return eventually(lambda: self._stored() > before + 100, 180)

    def assert_each_is_stored_once(self) -> None:
        """Stop, and compare the ledger with MySQL and the archive."""
        self._stopped.set()
        ledger = sorted(self._sending.result())
        assert eventually(lambda: self._stored() >= len(ledger), 120, every_s=1)
        assert seen_ids(self._settings, self.run) == ledger
        assert eventually(lambda: len(self.archived("event_id")) >= len(ledger), 120, every_s=2)
        assert sorted(self.archived("event_id")) == ledger

    def archived(self, column: str) -> list[Any]:
        with hive_of(self._settings) as hive, hive.connect() as connection:
            found = text(f"SELECT {column} FROM lake.digits.events WHERE event_id LIKE '{self.run}-%'")
            return list(connection.scalars(found))

    def _stored(self) -> int:
        return len(seen_ids(self._settings, self.run))


@pytest.mark.long
def test_each_topic_has_three_replicas_of_which_two_must_have_a_record(cluster: Cluster) -> None:
    wanted = [topic.name for topic in topics.all_topics(["digits"], partitions=3)]
    with KafkaAdminClient(**client_options(cluster.settings)) as admin:
        asked = [ConfigResource(ConfigResourceType.TOPIC, topic) for topic in wanted]
        found = admin.describe_configs(asked)["topic"]
    for topic in wanted:
        settings = {name: setting["value"] for name, setting in found[topic].items()}
        assert (settings["min.insync.replicas"], settings["message.timestamp.type"]) == ("2", "LogAppendTime"), topic
    assert cluster.replicas() == {3}


@pytest.mark.long
def test_any_of_three_brokers_may_be_killed_at_any_time(cluster: Cluster, traffic: Traffic) -> None:
    for node in cluster.nodes:  # the controllers' leader is among them, and the leaders of all partitions
        assert eventually(lambda: cluster.replicas(in_sync=True) == {3}, 120, every_s=1)
        assert traffic.goes_on()
        cluster.kill(node)
        assert traffic.goes_on(), "two go on without the third"
        cluster.start(node)
    traffic.assert_each_is_stored_once()


@pytest.mark.long
def test_partitions_that_are_added_under_traffic_are_all_read(
    cluster: Cluster, traffic: Traffic, test_images: NDArray[np.uint8]
) -> None:
    assert traffic.goes_on()
    added = cluster.settings.kafka_partitions + 2
    with KafkaAdminClient(**client_options(cluster.settings)) as admin:
        admin.create_partitions({topics.events("digits"): added, topics.predictions("digits"): added})
    with Traffic(cluster.settings, test_images).flowing() as later:  # a producer learns of partitions within minutes
        assert eventually(lambda: set(later.archived("kafka_partition")) == set(range(added)), 120, every_s=1)
        assert later.goes_on()
        later.assert_each_is_stored_once()
    traffic.assert_each_is_stored_once()
