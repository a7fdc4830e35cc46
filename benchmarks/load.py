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
_RISES_S = 1
_POISSON = """
local ffi = require("ffi")
ffi.cdef("typedef struct {long s; long us;} at; int gettimeofday(at *now, void *zone);")
local at, gap_ms, due_ms = ffi.new("at"), 1000 / %f
local function now_ms() ffi.C.gettimeofday(at, nil); return tonumber(at.s) * 1000 + tonumber(at.us) / 1000 end
local begun_ms = now_ms()
took_ms, refused, failed = {}, 0, 0

function delay()
  local now = now_ms()
  due_ms = (due_ms or now) - math.log(1 - math.random()) * gap_ms
  return math.max(0, math.floor(due_ms - now + 0.5))
end

function request()
  return wrk.format("POST", nil, nil, (wrk.body:gsub("SENT", ("%%.3f"):format(now_ms()), 1)))
end

function response(status, headers, body)
  if now_ms() < begun_ms + 1000 * %d then return end
  local sent = status == 200 and body:match('"event_id":"([%%d.]+)"')
  if sent then took_ms[#took_ms + 1] = now_ms() - sent
  elseif status == 429 then refused = refused + 1
  else failed = failed + 1 end
end

local threads = {}
function setup(thread) threads[#threads + 1] = thread end
function done()
  for _, thread in ipairs(threads) do
    print("FLOOD", thread:get("refused"), thread:get("failed"), table.concat(thread:get("took_ms"), " "))
  end
end
"""


@dataclass(frozen=True, kw_only=True)
class Load:
    """What one run found. refused: replies other than 2xx and 3xx, and connections that broke."""

    requests_s: float
    p50_ms: float
    p99_ms: float
    refused: int


@dataclass(frozen=True, kw_only=True)
class Flood:
    """What one run found. requests_s: answered or refused. took_ms: of the accepted requests. refused: how many 429s.
    failed: whatever else."""

    requests_s: float
    took_ms: list[float]
    refused: int
    failed: int


def images(rows: int) -> dict[str, Any]:
    """The body of a request for predictions of one image of noise, so many times."""
    image = b64encode(np.random.default_rng(0).integers(0, 256, 784, np.uint8).tobytes()).decode()
    return {"instances": [{"image": image}] * rows}


def load(url: str, body: Any, *, clients: int, seconds: float) -> Load:
    """POST `body` as JSON from `clients` connections, each with one request at a time. Raises: LookupError."""
    said = _wrk(url, _SCRIPT % json.dumps(body), clients, seconds)
    return Load(
        requests_s=float(_found(r"Requests/sec:\s+([\d.]+)", said)),
        p50_ms=_milliseconds(_found(r"\n\s+50%\s+(\S+)", said)),
        p99_ms=_milliseconds(_found(r"\n\s+99%\s+(\S+)", said)),
        refused=sum(map(int, re.findall(r"Non-2xx or 3xx responses: (\d+)", said)))
        + sum(map(int, re.findall(r"(?:connect|read|write|timeout) (\d+)", said))),
    )


def flood(url: str, event: Any, *, rate: float, connections: int, seconds: float) -> Flood:
    """POST an event `rate` times a second on average, answered or not, as long as a connection is free.

    What is answered in the first second, in which the flood rises, is not counted.
    Raises: LookupError.
    """
    body = json.dumps({"instances": [event | {"event_id": "SENT"}]})
    said = _wrk(url, _SCRIPT % body + _POISSON % (rate, _RISES_S), connections, seconds)
    refused, failed, found = re.search(r"FLOOD\t(\d+)\t(\d+)\t(.*)", said).groups()  # type: ignore[union-attr]
    broken = sum(map(int, re.findall(r"(?:connect|read|write|timeout) (\d+)", said)))
    took_ms = [float(each) for each in found.split()]
    return Flood(
        requests_s=(len(took_ms) + int(refused)) / (seconds - _RISES_S),
        took_ms=took_ms,
        refused=int(refused),
        failed=int(failed) + broken,
    )


def _wrk(url: str, script: str, connections: int, seconds: float) -> str:
    """What it prints."""
    wrk = shutil.which("wrk")
    if wrk is None:
        raise LookupError("wrk is not on the PATH; install the Debian package 'wrk'")
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        file.write(script)
        file.flush()
        options = ["-t1", f"-c{connections}", f"-d{seconds:g}s", "--latency", "--timeout=30s", "-s", file.name]
        return subprocess.run([wrk, *options, url], check=True, capture_output=True, text=True).stdout


def _found(pattern: str, said: str) -> str:
    found = re.search(pattern, said)
    if found is None:
        raise ValueError(f"wrk said {said!r}")
    return found[1]


def _milliseconds(text: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(\D+)", text).groups()  # type: ignore[union-attr]
    return float(number) * _UNITS_MS[unit]
