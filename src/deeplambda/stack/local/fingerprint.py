"""With what each part was started, so that `deeplambda up` restarts those for which that has changed, and no other.

A fingerprint has one entry for each thing that a part reads when it starts: its command, its environment, each setting,
each secret as a hash, and the code that it runs: each application's, and of a part in Python the platform's. It lies in
`<data_dir>/run/<part>.started.json`.
"""

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path

from pydantic import SecretStr

from deeplambda.config import Settings
from deeplambda.errors import UnknownApplication
from deeplambda.jvm.files import write_private
from deeplambda.loading import deployed_code_version, platform_code
from deeplambda.stack.local.parts import Part

Fingerprint = Mapping[str, str]
"""By what a person would call it, a value or its hash."""


def fingerprint(settings: Settings, part: Part) -> Fingerprint:
    """What the part would be started with now."""
    command = part.command(settings)
    found = {"command": " ".join(command), "environment": json.dumps(dict(part.environment))}
    if command[:2] == [sys.executable, "-m"]:
        found["code of the platform"] = platform_code("deeplambda", command[2].partition(".")[0])
    for name in part.reads:
        value = getattr(settings, name)
        is_secret = isinstance(value, SecretStr)
        found[name] = _hashed(value.get_secret_value()) if is_secret else str(value)
    if part.runs_applications:
        for application in settings.applications:
            found[f"code of {application}"] = _code(settings, application)
    return found


def changes(before: Fingerprint | None, now: Fingerprint) -> list[str]:
    """Names of what differs; of a part whose fingerprint is missing, that."""
    if before is None:
        return ["what it was started with is not known"]
    return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))


def why_restarted(changed: list[str], before: Fingerprint | None, now: Fingerprint) -> str:
    """The same for a person: what was added, changed or taken away."""
    if before is None:
        return changed[0]
    return ", ".join(
        f"{name} is new" if name not in before else f"{name} is gone" if name not in now else f"{name} changed"
        for name in changed
    )


def keep(settings: Settings, part: str, now: Fingerprint) -> None:
    """Remember what the part is started with; called just before that."""
    write_private(_place(settings, part), json.dumps(dict(now), indent=1))


def kept(settings: Settings, part: str) -> Fingerprint | None:
    """What the part was last started with; None when that is not known."""
    try:
        found: dict[str, str] = json.loads(_place(settings, part).read_text())
    except (FileNotFoundError, ValueError):
        return None
    return found


def _code(settings: Settings, application: str) -> str:
    try:
        return deployed_code_version(application, settings)
    except UnknownApplication:  # the part itself says so, and serves the others
        return "none"


def _hashed(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()[:16]


def _place(settings: Settings, part: str) -> Path:
    return settings.data_dir / "run" / f"{part}.started.json"
