"""supervisord, which keeps the parts up: its configuration, its start, and talking to it."""

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple, cast
from xmlrpc.client import Fault, ServerProxy

import psutil
from pydantic import SecretStr
from pydantic_core import to_json
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from deeplambda.config import Settings
from deeplambda.errors import ConfigurationError, NotReady
from deeplambda.jvm.files import write_private
from deeplambda.stack.local.parts import PARTS, Part
from deeplambda.stack.local.processes import PART_MARK, end

_SOCKET_PATH_LIMIT = 107  # bytes, sockaddr_un(7) less its terminating zero
_SOCKET_SUFFIX = 11  # supervisord first binds `<path>.<pid>`
_ALREADY_STARTED, _NOT_RUNNING = 60, 70  # supervisor.xmlrpc.Faults


class Process(NamedTuple):
    """What supervisord knows about a part. state: STOPPED, STARTING, RUNNING, BACKOFF, STOPPING, EXITED, FATAL."""

    name: str
    state: str
    pid: int
    started_at_s: int
    """Unix time of the last start."""
    problem: str

    @property
    def is_running(self) -> bool:
        return self.state in {"STARTING", "RUNNING"} and self.pid > 0


class Supervisor:
    """One supervisord, that of `settings.data_dir`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.run_dir = settings.data_dir / "run"
        self.log_dir = settings.data_dir / "logs"
        self.socket = self.run_dir / "supervisor.sock"
        self._temporary = settings.data_dir / "tmp"

    def is_up(self) -> bool:
        """Whether it answers."""
        return self.socket.exists() and self._answers()

    def start(self, parts: Iterable[Part]) -> None:
        """Start supervisord if it is not up, and tell it how to run `parts`; starts none of them."""
        check_socket_path(self.socket)
        known = {*self.processes(), *(part.name for part in parts)}
        for folder in (self.log_dir, self._temporary):
            folder.mkdir(parents=True, exist_ok=True)
        configuration = write_private(
            self.run_dir / "supervisord.conf", self.configuration([part for part in PARTS if part.name in known])
        )
        if self.is_up():
            self._reload_configuration()
            return
        shutil.rmtree(self._temporary)  # what parts that were killed left there
        self._temporary.mkdir()
        command = [sys.executable, "-m", "supervisor.supervisord", "-c", str(configuration)]
        environment = {name: value for name, value in os.environ.items() if name != "SPARK_HOME"}  # another Spark's
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if done.returncode != 0:
            raise ConfigurationError(
                f"supervisord did not start: {(done.stderr or done.stdout).strip()[-500:]}",
                f"see {self.log_dir / 'supervisord.log'}",
            )
        attempts = Retrying(
            retry=retry_if_exception_type(NotReady), stop=stop_after_delay(20), wait=wait_fixed(0.1), reraise=True
        )
        attempts(self._expect_answer)

    def processes(self) -> dict[str, Process]:
        """By part, what supervisord knows; empty when it is down."""
        if not self.is_up():
            return {}
        with self._proxy() as proxy:
            rows = cast("list[dict[str, str | int]]", proxy.supervisor.getAllProcessInfo())
        return {
            str(row["name"]): Process(
                str(row["name"]), str(row["statename"]), int(row["pid"]), int(row["start"]), str(row["spawnerr"])
            )
            for row in rows
        }

    def running(self) -> set[str]:
        """The names of the parts whose process runs."""
        return {name for name, process in self.processes().items() if process.is_running}

    def start_part(self, name: str) -> None:
        """Start a part that is not running; returns at once."""
        self._call("startProcess", name, ignoring=_ALREADY_STARTED)

    def stop_part(self, name: str) -> None:
        """Stop a part and wait until it is gone."""
        self._call("stopProcess", name, ignoring=_NOT_RUNNING)

    def shut_down(self) -> None:
        """End supervisord itself and wait until it is gone."""
        with self._proxy() as proxy:
            pid = cast("int", proxy.supervisor.getPID())
            proxy.supervisor.shutdown()
        with suppress(psutil.NoSuchProcess):
            end([psutil.Process(pid)])

    def spawns(self, name: str) -> int:
        """How often the part was started since supervisord was."""
        log = self.log_dir / "supervisord.log"
        text = "".join(path.read_text() for path in (Path(f"{log}.1"), log) if path.exists())
        return text[text.rfind("supervisord started with pid") :].count(f"spawned: '{name}'")

    def configuration(self, parts: Iterable[Part]) -> str:
        """supervisord.conf; it holds no secret."""
        _, open_files = resource.getrlimit(resource.RLIMIT_NOFILE)
        head = f"""\
[supervisord]
logfile = {self.log_dir}/supervisord.log
logfile_maxbytes = 5MB
logfile_backups = 1
pidfile = {self.run_dir}/supervisord.pid
childlogdir = {self.log_dir}
directory = {_literal(Path.cwd())}
identifier = deeplambda
umask = 077
minfds = {min(open_files, 65536) if open_files > 0 else 65536}
silent = true

[unix_http_server]
file = {self.socket}
chmod = 0600

[supervisorctl]
serverurl = unix://{self.socket}

[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface
"""
        return head + "".join(self._program(part) for part in parts)

    def _program(self, part: Part) -> str:
        command = " ".join(_quoted(word) for word in part.command(self._settings))
        # Here supervisord knows no escapes, unlike in a command.
        environment = ",".join(f"{name}={_in_quotes(value)}" for name, value in self._environment(part).items())
        return f"""
[program:{part.name}]
command = {command}
environment = {environment}
autostart = false
autorestart = true
startsecs = 10
startretries = 30
stopwaitsecs = {part.stop_timeout_s}
stopasgroup = false
killasgroup = true
redirect_stderr = true
stdout_logfile = {self.log_dir}/{part.name}.log
stdout_logfile_maxbytes = 10MB
stdout_logfile_backups = 3
"""

    def _environment(self, part: Part) -> Mapping[str, str]:
        return {
            "DEEPLAMBDA_DATA_DIR": str(self._settings.data_dir),
            PART_MARK: part.name,
            "TMPDIR": str(self._temporary),
            # As `up` reads them now: what supervisord inherited may be from an earlier `up`.
            **{
                f"DEEPLAMBDA_{name.upper()}": text
                for name in part.reads
                if (text := as_environment(getattr(self._settings, name))) is not None
            },
            **part.environment,
        }

    def _reload_configuration(self) -> None:
        running = self.running()
        with self._proxy() as proxy:
            ((added, changed, removed),) = cast("list[list[list[str]]]", proxy.supervisor.reloadConfig())
            for name in (*changed, *removed):
                if name not in running:
                    proxy.supervisor.removeProcessGroup(name)
            for name in (*added, *changed):
                if name not in running:
                    proxy.supervisor.addProcessGroup(name)

    def _call(self, method: str, name: str, ignoring: int) -> None:
        with self._proxy() as proxy:
            try:
                getattr(proxy.supervisor, method)(name, method == "stopProcess")
            except Fault as exc:
                if exc.faultCode != ignoring:
                    raise NotReady(f"supervisord refused {method} of {name}: {exc.faultString}") from exc

    def _proxy(self) -> ServerProxy:
        from supervisor.xmlrpc import SupervisorTransport

        # The address before the transport is not used; ServerProxy only wants one that looks like HTTP.
        return ServerProxy("http://localhost", transport=SupervisorTransport(serverurl=f"unix://{self.socket}"))

    def _answers(self) -> bool:
        try:
            with self._proxy() as proxy:
                proxy.supervisor.getState()
        except (OSError, HTTPException, Fault):  # a Fault while it shuts down
            return False
        return True

    def _expect_answer(self) -> None:
        if not self.is_up():
            raise NotReady("supervisord does not answer", f"see {self.log_dir / 'supervisord.log'}")


def check_socket_path(path: Path) -> None:
    """Raises: ConfigurationError for a path that supervisord would misread or that is too long for the system."""
    if set(str(path)) & {"%", '"', "\n"}:
        raise ConfigurationError(
            f"the data folder's path has a per cent sign or a quotation mark, which supervisord misreads: {path}",
            "set DEEPLAMBDA_DATA_DIR to a folder without",
        )
    length = len(os.fsencode(path)) + _SOCKET_SUFFIX
    if length > _SOCKET_PATH_LIMIT:
        raise ConfigurationError(
            f"the data folder's path is {length - _SOCKET_PATH_LIMIT} bytes too long for a Unix socket: {path}",
            "set DEEPLAMBDA_DATA_DIR to a folder with a shorter path",
        )


def as_environment(value: Any) -> str | None:
    """A setting as an environment variable holds it; None for a secret, which a part reads from its file."""
    if isinstance(value, SecretStr):
        return None
    if isinstance(value, Path):
        return str(value.resolve())  # relative to where `up` was called, not to where supervisord was started
    return "" if value is None else value if isinstance(value, str) else to_json(value).decode()


def _in_quotes(value: str) -> str:
    """A value of `environment`, in the kind of quotes that it has none of: there are no escapes."""
    quote = "'" if '"' in value else '"'
    if quote in value or value.endswith(("'", '"')):
        raise ConfigurationError(f"supervisord cannot pass on the value {value!r}", "choose one with no quotation mark")
    return f"{quote}{_literal(value)}{quote}"


def _literal(value: str | Path) -> str:
    """A value of the configuration in which no per cent sign means anything."""
    return str(value).replace("%", "%%")


def _quoted(word: str) -> str:
    """One word of a command line, as supervisord's configuration writes it."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{_literal(escaped)}"'
