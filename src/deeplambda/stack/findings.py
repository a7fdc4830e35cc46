"""What `deeplambda doctor` finds, on a machine or in a container."""

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
