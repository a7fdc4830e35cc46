"""S3: S3Proxy over a folder."""

from deeplambda.config import Settings
from deeplambda.jvm.commands import java_command
from deeplambda.jvm.files import write_private
from deeplambda.jvm.jars import component_jars

HEAP_MB = 384  # a signed PUT is held whole while its signature is checked


def prepare(settings: Settings) -> None:
    """Make the folder and write S3Proxy's configuration, before each of its starts."""
    folder = settings.data_dir / "s3"
    (folder / "data").mkdir(parents=True, exist_ok=True)
    write_private(folder / "logback.xml", _LOGGING)
    write_private(
        folder / "s3proxy.properties",
        f"""\
s3proxy.endpoint={settings.s3_endpoint}
s3proxy.authorization=aws-v2-or-v4
s3proxy.identity={settings.s3_access_key}
s3proxy.credential={settings.s3_secret_key.get_secret_value()}
jclouds.provider=filesystem-nio2
jclouds.filesystem.basedir={folder / "data"}
""",
    )


def command(settings: Settings) -> list[str]:
    folder = settings.data_dir / "s3"
    return java_command(
        "org.gaul.s3proxy.Main",
        component_jars(settings, "s3"),
        heap_mb=HEAP_MB,
        scratch=folder / "tmp",
        properties={"logback.configurationFile": folder / "logback.xml"},
        arguments=["--properties", folder / "s3proxy.properties"],
    )


# At S3Proxy's own default, DEBUG, putting objects is eight times slower.
_LOGGING = """\
<configuration>
  <appender name="console" class="ch.qos.logback.core.ConsoleAppender">
    <target>System.err</target>
    <encoder><pattern>%d %-5level %logger{0} %msg%n</pattern></encoder>
  </appender>
  <root level="WARN"><appender-ref ref="console"/></root>
</configuration>
"""
