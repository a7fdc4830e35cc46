"""Load on an HTTP server by wrk, which takes a few percent of a core: requests a second, and how long they took.

Debian has it as the package `wrk`. Without root: `apt-get download wrk libluajit-5.1-2`, then `dpkg -x` of each.
"""

import json
import re
import shutil
import subprocess
import tempfile
from base64 import b64encode
from dataclasses import dataclass
from typing import Any

import numpy as np

_UNITS_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}
_SCRIPT = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = [=====[%s]=====]
"""


@dataclass(frozen=True, kw_only=True)
class Load:
    """What one run found. refused: replies other than 2xx and 3xx, and connections that broke."""

    requests_s: float
    p50_ms: float
    p99_ms: float
    refused: int


def images(rows: int) -> dict[str, Any]:
    """The body of a request for predictions of one image of noise, so many times."""
    image = b64encode(np.random.default_rng(0).integers(0, 256, 784, np.uint8).tobytes()).decode()
    return {"instances": [{"image": image}] * rows}


def load(url: str, body: Any, *, clients: int, seconds: float) -> Load:
    """POST `body` as JSON from `clients` connections, each with one request at a time. Raises: LookupError."""
    wrk = shutil.which("wrk")
    if wrk is None:
        raise LookupError("wrk is not on the PATH; install the Debian package 'wrk'")
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(_SCRIPT % json.dumps(body))
        script.flush()
        command = [wrk, "-t1", f"-c{clients}", f"-d{seconds:g}s", "--latency", "--timeout=30s", "-s", script.name, url]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return Load(
        requests_s=float(_found(r"Requests/sec:\s+([\d.]+)", said)),
        p50_ms=_milliseconds(_found(r"\n\s+50%\s+(\S+)", said)),
        p99_ms=_milliseconds(_found(r"\n\s+99%\s+(\S+)", said)),
        refused=sum(map(int, re.findall(r"Non-2xx or 3xx responses: (\d+)", said)))
        + sum(map(int, re.findall(r"(?:connect|read|write|timeout) (\d+)", said))),
    )


def _found(pattern: str, said: str) -> str:
    found = re.search(pattern, said)
    if found is None:
        raise ValueError(f"wrk said {said!r}")
    return found[1]


def _milliseconds(text: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(\D+)", text).groups()  # type: ignore[union-attr]
    return float(number) * _UNITS_MS[unit]
