"""One setting has generations begin by themselves in containers."""

import pytest
from sqlalchemy import text

from deeplambda.adapters import mysql
from deeplambda.config import Settings
from tests.compose.conftest import Compose
from tests.traffic import eventually


@pytest.mark.timeout(1800)
def test_a_generation_begins_by_itself_and_comes_to_the_gate(compose: Compose, client: Settings, demo: str) -> None:
    def ended() -> list[tuple[str, str]]:
        query = text("SELECT cause, state FROM generations WHERE application = 'digits' AND state <> 'running'")
        with mysql.engine(client, "analyst").connect() as connection:
            return [tuple(row) for row in connection.execute(query)]

    try:
        compose("up", "--detach", "--no-deps", "--wait", "generations", DEEPLAMBDA_GENERATIONS="true")
        assert eventually(ended, timeout_s=1200, every_s=5), compose("logs", "generations")
        ((cause, state),) = ended()
        assert cause in ("labels", "drift"), "the demo sends labels, and its last images are of others than the first"
        assert state in ("promoted", "rejected")
    finally:
        compose.up()
