"""What `deeplambda doctor` finds, on a machine or in a container."""

import difflib
from collections.abc import Collection
from dataclasses import dataclass

GIB = 1 << 30
NOMINAL = 0.92
"""Of a machine's memory what the system shows, at least: firmware and kernel keep the rest."""


@dataclass(frozen=True)
class Finding:
    """One thing looked at. remedy is empty when it is fine."""

    subject: str
    found: str
    remedy: str = ""

    @property
    def is_fine(self) -> bool:
        return not self.remedy


def of_no_setting(name: str, known: Collection[str]) -> tuple[str, str] | None:
    """What is found of a name that is none of the `known` settings, and the remedy; None where it is one."""
    if name in known:
        return None
    near = difflib.get_close_matches(name, known, 1)
    return "nothing reads it", f"write {near[0]}" if near else "remove it; .env.example names what there is"
