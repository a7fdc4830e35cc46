"""How the stack's Java programs are started: small heaps, quick to start."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from deeplambda.jvm.ivy import java_program


def java_command(
    main_class: str,
    class_path: Iterable[str | Path],
    *,
    heap_mb: int,
    scratch: Path,
    properties: Mapping[str, str | Path] = {},
    arguments: Iterable[str | Path] = (),
) -> list[str]:
    """A command line that runs `main_class`, with a heap of at most `heap_mb` MiB and temporary files in `scratch`."""
    scratch.mkdir(parents=True, exist_ok=True)
    return [
        java_program(),
        f"-Xmx{heap_mb}m",
        "-Xss512k",
        # One collector thread and the quick compiler: the parts share few cores, and most of their time is I/O.
        "-XX:+UseSerialGC",
        "-XX:TieredStopAtLevel=1",
        "-XX:+ExitOnOutOfMemoryError",
        "-XX:-UsePerfData",  # files in the system's temporary folder
        f"-Djava.io.tmpdir={scratch}",
        *(f"-D{name}={value}" for name, value in properties.items()),
        "-cp",
        ":".join(map(str, class_path)),
        main_class,
        *map(str, arguments),
    ]
