"""A container's health check: `python -m deeplambda.stack.containers.health PART` exits with 0 when the part is well.

It asks in the part's own protocol and imports only what that takes, for it runs every few seconds.
"""

import shutil
import sys
import urllib.error
import urllib.request

from deeplambda.config import Settings, load_settings, port_of
from deeplambda.errors import NotReady
from deeplambda.service.heartbeat import HEARTBEAT_PARTS, probe_heartbeat

_TIMEOUT_S = 5
_CHECKPOINTS_NEED_MB = 64
# By part: the port of its status page, and a text that the page holds when the part is well.
_SPARK_PAGES = {"spark-master": (8080, '"ALIVE"'), "spark-worker": (8081, '"masterwebuiurl" : "http')}


def check(settings: Settings, part: str) -> str:
    """A short note about the part of this container. Raises: NotReady."""
    if part in HEARTBEAT_PARTS:
        _room_for_checkpoints(settings)
        return probe_heartbeat(settings, part)
    if part == "model":
        return _http(f"http://127.0.0.1:{port_of(settings.model_url)}/v2/health/live")
    if part == "query":
        return _http(f"http://127.0.0.1:{port_of(settings.query_url)}/v1/health")
    if part in _SPARK_PAGES:
        port, expected = _SPARK_PAGES[part]
        if expected not in _http(f"http://127.0.0.1:{port}/json/"):
            raise NotReady(f"its page on port {port} does not say {expected}")
        return expected
    from deeplambda.stack import probes

    return {"gateway": probes.gateway, "metastore": probes.metastore}[part](settings)


def _room_for_checkpoints(settings: Settings) -> None:
    folder = settings.data_dir / "checkpoints"
    free_mb = shutil.disk_usage(folder if folder.exists() else settings.data_dir).free / 1e6
    if free_mb < _CHECKPOINTS_NEED_MB:
        raise NotReady(
            f"{folder} is full: {free_mb:.0f} MB free, {_CHECKPOINTS_NEED_MB} needed; free space on its volume"
        )


def _http(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:  # noqa: S310  # this container's own address
            return str(answer.read().decode())
    except (urllib.error.URLError, OSError) as exc:
        raise NotReady(f"{url} does not answer: {exc}") from exc


if __name__ == "__main__":
    try:
        print(check(load_settings(), sys.argv[1]))
    except NotReady as exc:
        sys.exit(str(exc))
