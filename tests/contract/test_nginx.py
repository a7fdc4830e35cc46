"""What nginx bounds in front of the model service, and what not."""

import json
import re
from pathlib import Path

import yaml

COMPOSE = yaml.safe_load((Path(__file__).parents[2] / "docker-compose.yml").read_text())["services"]["nginx"]
OWN_MIB = 64
"""What nginx itself takes, at most."""
CONF = (Path(__file__).parents[2] / "deploy/nginx/nginx.conf").read_text()
SERVER = CONF[CONF.index("server {") :]


def location(path: str) -> str:
    """A location's directives, with those of the server that it inherits."""
    (own,) = re.findall(rf"location {re.escape(path)} {{([^}}]*)}}", SERVER)
    return re.sub(r"location [^{]*{[^}]*}", "", SERVER) + own


def test_a_client_is_bounded_in_requests_and_connections() -> None:
    assert {"limit_req", "limit_conn"} <= set(re.findall(r"\blimit_\w+", location("/")))


def test_health_may_be_asked_by_whoever_sends_too_much() -> None:
    assert "proxy_pass $model;" in location("/v2/health/")
    assert "limit_" not in location("/v2/health/")


def test_what_waits_in_files_fits_the_containers_memory_and_takes_no_room_from_answers() -> None:
    room_mib = dict(re.findall(r"(/[\w/]+):size=(\d+)m", " ".join(COMPOSE["tmpfs"])))
    assert len(room_mib) == len(COMPOSE["tmpfs"]), "each has a size"
    assert sum(map(int, room_mib.values())) + OWN_MIB <= int(COMPOSE["mem_limit"].removesuffix("m"))
    places = {name: path.rpartition("/")[0] for name, path in re.findall(r"(\w+)_temp_path (\S+);", CONF)}
    assert set(places.values()) == set(room_mib)
    assert [name for name, place in places.items() if place == places["client_body"]] == ["client_body"]


def test_a_request_that_finds_no_room_is_told_to_try_again() -> None:
    (name,) = re.findall(r"error_page 500 = (@\w+);", SERVER)
    answer = location(name)
    assert "return 503" in answer
    assert "Retry-After" in answer


def test_what_nginx_refuses_itself_is_a_problem_that_stock_clients_can_read() -> None:
    answers = [(int(status), json.loads(body)) for status, body in re.findall(r"return (\d+) '(.*)';", SERVER)]
    assert {status for status, _ in answers} == {400, 413, 414, 429, 431, 503}
    assert all(body["status"] == status and body["error"] == body["detail"] for status, body in answers)
    assert SERVER.count("default_type application/problem+json;") == len(answers)
    for code, place in re.findall(r"error_page ([\d ]+) = (\S+);", SERVER):
        assert re.search(rf"location (= )?{re.escape(place)} {{", SERVER), code
