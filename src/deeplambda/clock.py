"""The one clock: every moment that the platform records is taken here."""

from datetime import UTC, datetime


def now() -> datetime:
    """The present moment, timezone-aware UTC."""
    return datetime.now(UTC)
