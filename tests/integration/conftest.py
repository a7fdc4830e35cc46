"""What several of these tests share, because it takes long to start."""

from collections.abc import Iterator

import psutil
import pytest
from pyspark.sql import SparkSession

from deeplambda.adapters.lake import spark_session
from deeplambda.config import Settings
from tests.integration.own_gateway import OwnGateway
from tests.integration.own_model_service import OwnService


@pytest.fixture(scope="session")
def gateway(stack: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnGateway]:
    """A Hive gateway of the tests' own. Its application `gateway.application` has a model service, not yet started."""
    service = OwnService(stack, tmp_path_factory.mktemp("applications"))
    gateway = OwnGateway(service, tmp_path_factory.mktemp("gateway"))
    with gateway.running():
        yield gateway
        processes = gateway.processes()
        assert gateway.stop() == 0, "SIGTERM should end it cleanly"
        _, alive = psutil.wait_procs(processes, timeout=5)
        assert not alive, "it should leave no process behind"


@pytest.fixture(scope="module")
def spark(gateway: OwnGateway) -> Iterator[SparkSession]:
    """A session that writes to the lake, beside the gateway's."""
    session = spark_session(gateway.settings, "test", {"spark.driver.memory": "512m"})
    yield session
    session.stop()
