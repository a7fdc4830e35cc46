"""What nginx bounds in front of the model service, and what not."""

import re
from pathlib import Path

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
