"""The README's Docker section does what it says, in its order."""

import re

from tests.compose.conftest import ROOT, Compose
from tests.traffic import eventually

SECTION = re.search(r"## Start with Docker.*?(?=\n## )", (ROOT / "README.md").read_text(), re.DOTALL)
DEFAULT_PORTS = {"KAFKA": 9094, "MYSQL": 3306, "HIVE": 10000, "MODEL": 8500, "QUERY": 8600}
SEEN_ELSEWHERE = ("up --detach --wait", "run --rm demo")  # the fixtures `compose` and `demo`


def test_every_command_in_turn(compose: Compose, demo: str) -> None:
    assert SECTION is not None
    commands = re.findall(r"^\$ (.*)$", SECTION[0], re.MULTILINE)
    for each in SEEN_ELSEWHERE:
        assert f"docker compose {each}" in commands
    said = {}
    for command in commands:
        if not command.endswith(SEEN_ELSEWHERE):
            said[command] = typed(compose, command)
    predicted, counted, _, found, *passwords = said.values()
    assert '"predictions":' in predicted
    assert re.search(r"batch\W+10,?000", counted)
    assert "mine-1" in found
    assert all(len(password.strip()) >= 32 for password in passwords)


def typed(compose: Compose, command: str) -> str:
    """What a command prints, with this project's ports. What looks for the event is run until it is scored."""
    for name, port in DEFAULT_PORTS.items():
        ours = compose.environment[f"DEEPLAMBDA_{name}_PORT"]
        command = command.replace(f"127.0.0.1:{port}", f"127.0.0.1:{ours}")

    def run() -> str:
        return compose.script("bash", "-c", command.replace("compose run --rm", "compose run --rm -T"))

    if "event_id = 'mine-1'" not in command:
        return run()
    return eventually(lambda: said if "mine-1" in (said := run()) else "", timeout_s=60, every_s=1)
