"""Passwords: random, made at first use, one file each with mode 0600."""

import os
import secrets
from pathlib import Path

from deeplambda.config import Settings, secret_fields


def make_missing_secrets(settings: Settings, folder: Path) -> list[str]:
    """Give every empty secret of `settings` a random value, a file in `folder`; returns the fields' names.

    The settings given stay as they are: load them anew to see the values.
    """
    made = []
    for field in secret_fields():
        if not getattr(settings, field).get_secret_value():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(folder / f"deeplambda_{field}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_urlsafe(24))
            made.append(field)
    return made
