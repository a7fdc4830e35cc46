"""Writing the files that parts are configured by."""

from pathlib import Path


def write_private(path: Path, text: str) -> Path:
    """Write `text` to `path`, readable by the owner alone from the first byte on; replaces in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_suffix(path.suffix + ".new")
    written.unlink(missing_ok=True)
    written.touch(mode=0o600)
    written.write_text(text)
    return written.replace(path)
