"""The gateway's Java as a jar."""

from pathlib import Path

from deeplambda.config import Settings
from deeplambda.jvm.java_sources import compiled_jar

SOURCES = Path(__file__).with_name("java")


def gateway_jar(settings: Settings) -> Path:
    """The jar, made anew when the sources have changed. Raises: ConfigurationError when they do not compile."""
    return compiled_jar(SOURCES, settings)
