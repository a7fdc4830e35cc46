"""Three brokers: any one may be killed at any time, and nothing acknowledged is lost or stored twice."""

import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, takewhile
from pathlib import Path
from subprocess import CompletedProcess
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from kafka import KafkaAdminClient
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

    def replicas_in_sync(self, application: str) -> set[int]:
        """How many brokers have all of each partition of the application's topics; nothing while nobody says."""
        try:
            with KafkaAdminClient(**client_options(self.settings)) as admin:
                found = admin.describe_topics([topics.events(application), topics.predictions(application)])
        except KafkaError:
            return set()
        return {len(partition["isr_nodes"]) for topic in found for partition in topic["partitions"]}


@pytest.fixture
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


@pytest.mark.long
def test_any_of_three_brokers_may_be_killed_at_any_time(cluster: Cluster, test_images: NDArray[np.uint8]) -> None:
    settings, run = cluster.settings, new_run("brokers")
    with KafkaAdminClient(**client_options(settings)) as admin:
        (found,) = admin.describe_topics([topics.events("digits")])
    assert {len(partition["replica_nodes"]) for partition in found["partitions"]} == {3}
    assert eventually(lambda: cluster.replicas_in_sync("digits") == {3})

    def stored() -> int:
        return len(seen_ids(settings, run))

    def goes_on() -> bool:
        before = stored()
        return eventually(lambda: stored() > before + 100, 120)

    all_killed = threading.Event()
    images = takewhile(lambda _: not all_killed.is_set(), cycle(test_images))
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(send_digits, settings, run, images, rate=100)
        try:
            for node in cluster.nodes:  # the controllers' leader is among them, and the leaders of all partitions
                assert goes_on()
                cluster.kill(node)
                assert goes_on(), "two go on without the third"
                cluster.start(node)
                assert eventually(lambda: cluster.replicas_in_sync("digits") == {3}, 120, every_s=1)
        finally:
            all_killed.set()
    ledger = sorted(sending.result())
    assert eventually(lambda: stored() >= len(ledger), 120, every_s=1)
    assert seen_ids(settings, run) == ledger
    with hive_of(settings) as hive, hive.connect() as connection:
        archived = text(f"SELECT event_id FROM lake.digits.events WHERE event_id LIKE '{run}-%'")
        assert eventually(lambda: len(connection.scalars(archived).all()) >= len(ledger), 120, every_s=2)
        assert sorted(connection.scalars(archived)) == ledger
