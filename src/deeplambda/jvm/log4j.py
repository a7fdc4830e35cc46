"""Logging of Java programs to standard error, which the supervisor or the container engine collects."""

from collections.abc import Mapping

_CONSOLE = """\
status = error
appender.console.type = Console
appender.console.name = console
appender.console.target = SYSTEM_ERR
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d{ISO8601} %-5p %c{1} %m%n
rootLogger.level = warn
rootLogger.appenderRef.console.ref = console
"""


def console_logging(levels: Mapping[str, str]) -> str:
    """log4j2 properties: warnings to standard error; levels: of the loggers named, where they differ."""
    own = "".join(
        f"logger.{number}.name = {name}\nlogger.{number}.level = {level}\n"
        for number, (name, level) in enumerate(levels.items())
    )
    return _CONSOLE + own
