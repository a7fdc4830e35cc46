"""The record of `<application>.dead-letters`: what could not be processed, why, and its bytes, so it can be replayed.

Its JSON form is public: a field may be added, none is renamed or removed.
"""

from base64 import b64decode, b64encode
from datetime import datetime
from typing import Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from deeplambda.clock import now

KEPT_VALUE_BYTES = 8 * 1024 * 1024
"""A longer value is cut to this: in base64, with the rest of the letter, it must fit into a Kafka record."""
KEPT_KEY_BYTES = 64 * 1024


class DeadLetter(BaseModel):
    """One refused record.

    reason: a short class, for counting (for events: `deeplambda.records.decoding.Reason`). detail: the sentence for a
    person. topic, partition, offset, received_at: where and when the broker stored the record. value_size_bytes: of the
    whole value, so that a cut one can be recognised; as long as `topic` retains the record, it has the whole value.
    model_version: whose code refused it, where that is known.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    application: str
    reason: str
    detail: str
    topic: str
    partition: int
    offset: int
    received_at: AwareDatetime
    dead_at: AwareDatetime = Field(default_factory=now)
    event_id: str | None = None
    key_base64: str | None = None
    value_base64: str | None = None
    value_size_bytes: int = 0
    model_version: int | None = None

    @classmethod
    def of_record(
        cls,
        *,
        application: str,
        reason: str,
        detail: str,
        topic: str,
        partition: int,
        offset: int,
        received_at: datetime,
        key: bytes | None,
        value: bytes | None,
        event_id: str | None = None,
        model_version: int | None = None,
    ) -> Self:
        """The letter for a Kafka record with this key and value."""
        return cls(
            application=application,
            reason=reason,
            detail=detail[:2000],
            topic=topic,
            partition=partition,
            offset=offset,
            received_at=received_at,
            event_id=event_id,
            key_base64=None if key is None else b64encode(key[:KEPT_KEY_BYTES]).decode(),
            value_base64=None if value is None else b64encode(value[:KEPT_VALUE_BYTES]).decode(),
            value_size_bytes=len(value or b""),
            model_version=model_version,
        )

    @property
    def record_key(self) -> str:
        """The Kafka key of the letter: the refused record's position, the same for a second letter about it."""
        return f"{self.topic}/{self.partition}/{self.offset}"

    @property
    def value(self) -> bytes | None:
        """The refused bytes."""
        return None if self.value_base64 is None else b64decode(self.value_base64)

    @property
    def key(self) -> bytes | None:
        """The refused record's key."""
        return None if self.key_base64 is None else b64decode(self.key_base64)
