"""What several of these tests share, because it takes long to start."""

import uuid
from collections.abc import Iterator

import psutil
import pytest
from sqlalchemy import delete

from deeplambda.adapters import mysql
from deeplambda.config import Settings
from deeplambda.loading import PackedApplication
from deeplambda.state.tables import SCHEMA
from tests.integration.blobs import blobs
from tests.integration.own_gateway import OwnGateway
from tests.integration.own_model_service import OwnService, model_of


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


@pytest.fixture(scope="session")
def running_service(stack: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnService]:
    """The model service behind `service`, started once. Its version 1 is `model_of(1)`."""
    own = OwnService(stack, tmp_path_factory.mktemp("applications"))
    with own.running():
        own.publish(model_of(1))
        yield own


@pytest.fixture
def service(running_service: OwnService) -> OwnService:
    """A service that serves version 1, whatever the test before has left it with."""
    if running_service.version() != 1 or running_service.error():
        running_service.promote(1)
        assert running_service.serves(1), running_service.log.read_text()
    return running_service


@pytest.fixture(scope="module")
def application(stack: Settings, tmp_path_factory: pytest.TempPathFactory) -> PackedApplication:
    """An application of the module's own that trains in a second."""
    return blobs(stack, tmp_path_factory.mktemp("applications"))


@pytest.fixture
def own_name(stack: Settings) -> Iterator[str]:
    """An application of the test's own, which only MySQL's tables know; its rows go afterwards."""
    name = f"own_{uuid.uuid4().hex[:8]}"
    yield name
    with mysql.engine(stack, "platform").begin() as connection:
        for table in SCHEMA.sorted_tables:
            if "application" in table.columns:
                connection.execute(delete(table).where(table.c.application == name))
