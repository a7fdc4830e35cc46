"""Stand-ins in memory, with the methods of the real ones, faults included: for tests of code that takes either."""

import hashlib
from collections import defaultdict
from dataclasses import dataclass

from pydantic_core import to_json

from deeplambda.adapters.s3 import StoredObject
from deeplambda.clock import now
from deeplambda.errors import BadInput, CorruptObject, NotReady


@dataclass(frozen=True, kw_only=True)
class Record:
    """A record as a consumer gets it."""

    key: bytes | None
    value: bytes
    offset: int


class FakeBroker:
    """As `adapters.kafka.Publisher`: what was sent is in `records(topic)` once it is flushed.

    `down`: while true, sending and flushing raise NotReady, and what was queued stays queued.
    """

    def __init__(self) -> None:
        self.down = False
        self._queued: list[tuple[str, bytes | None, bytes]] = []
        self._stored: dict[str, list[Record]] = defaultdict(list)

    def send(self, topic: str, key: str, value: object) -> None:
        """Queue one record. value: anything that JSON can hold. Raises: NotReady."""
        self.send_bytes(topic, key, to_json(value))

    def send_bytes(self, topic: str, key: str | None, value: bytes) -> None:
        """Queue one record whose value is JSON already. Raises: NotReady."""
        self._check()
        self._queued.append((topic, None if key is None else key.encode(), value))

    def flush(self, timeout_s: float = 30) -> None:
        """Store what is queued. Raises: NotReady."""
        self._check()
        for topic, key, value in self._queued:
            self._stored[topic].append(Record(key=key, value=value, offset=len(self._stored[topic])))
        self._queued.clear()

    def close(self) -> None:
        """Flush."""
        self.flush()

    def records(self, topic: str) -> list[Record]:
        """What is stored in a topic."""
        return list(self._stored[topic])

    def __enter__(self) -> "FakeBroker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check(self) -> None:
        if self.down:
            raise NotReady("the broker is down", "try again")


class FakeStore:
    """As `adapters.s3.ObjectStore`. `down`: while true, each call raises NotReady. `damage(key)` changes a byte."""

    def __init__(self) -> None:
        self.down = False
        self._objects: dict[str, bytes] = {}
        self._recorded: dict[str, str] = {}

    def put(self, key: str, content: bytes) -> str:
        """Store an object; returns its SHA-256."""
        self._check()
        self._objects[key] = bytes(content)
        self._recorded[key] = hashlib.sha256(content).hexdigest()
        return self._recorded[key]

    def digest(self, key: str) -> str | None:
        """The recorded SHA-256; None for an object that is not there."""
        self._check()
        return self._recorded.get(key)

    def get(self, key: str, sha256: str | None = None) -> bytes:
        """An object. Raises: BadInput when there is none, CorruptObject when its hash is another."""
        self._check()
        if key not in self._objects:
            raise BadInput(f"there is no object {key}", "put it there")
        content = self._objects[key]
        if hashlib.sha256(content).hexdigest() != (sha256 or self._recorded[key]):
            raise CorruptObject(f"{key} is damaged", "put it there again")
        return content

    def list(self, prefix: str) -> list[StoredObject]:
        """The objects whose keys begin with `prefix`; all were stored just now."""
        self._check()
        return [
            StoredObject(key, len(content), now(), hashlib.md5(content, usedforsecurity=False).hexdigest())
            for key, content in sorted(self._objects.items())
            if key.startswith(prefix)
        ]

    def damage(self, key: str) -> None:
        """Change an object behind the store's back."""
        content = self._objects[key]
        self._objects[key] = bytes([content[0] ^ 1]) + content[1:] if content else b"\0"

    def _check(self) -> None:
        if self.down:
            raise NotReady("the object store is down", "try again")
