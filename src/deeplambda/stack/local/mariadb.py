"""MySQL's protocol: MariaDB, from a jar of native programs."""

import os
import shutil
import subprocess
from pathlib import Path

from pymysql.converters import escape_string

from deeplambda.config import Settings, host_of, port_of
from deeplambda.errors import ConfigurationError
from deeplambda.jvm.files import write_private
from deeplambda.jvm.jars import native_mysql

BUFFER_POOL_MB = 128
_TMP = "tmp"
"""A folder for temporary tables of its own: each server that starts deletes all that it finds in it, those of another
stack's as well."""


def prepare(settings: Settings) -> None:
    """Before each start: make the system tables if there are none, and write the file that sets root's password."""
    folder = settings.data_dir / "mysql"
    (folder / _TMP).mkdir(parents=True, exist_ok=True)
    if not (folder / "data").exists():
        _install(settings, folder)
    password = escape_string(settings.mysql_root_password.get_secret_value())
    write_private(
        folder / "init.sql",  # run before the first connection is taken, so root is never without its password
        # The installer makes accounts without a password: root@::1, root at the machine's name, and one without a name.
        f"""\
DELETE FROM mysql.global_priv WHERE User = '' OR (User = 'root' AND Host NOT IN ('localhost', '127.0.0.1'));
FLUSH PRIVILEGES;
CREATE USER IF NOT EXISTS 'root'@'127.0.0.1' IDENTIFIED BY '{password}';
GRANT ALL ON *.* TO 'root'@'127.0.0.1' WITH GRANT OPTION;
ALTER USER 'root'@'127.0.0.1' IDENTIFIED BY '{password}';
ALTER USER 'root'@'localhost' IDENTIFIED BY '{password}';
""",
    )


def command(settings: Settings) -> list[str]:
    folder, home = settings.data_dir / "mysql", native_mysql(settings)
    return [
        f"{home}/bin/mariadbd",
        "--no-defaults",
        *_account(),
        f"--basedir={home}",
        f"--datadir={folder / 'data'}",
        f"--tmpdir={folder / _TMP}",
        f"--socket={socket_path(settings)}",
        f"--pid-file={settings.data_dir / 'run' / 'mysql.pid'}",
        f"--init-file={folder / 'init.sql'}",
        f"--bind-address={host_of(settings.mysql_address)}",
        f"--port={port_of(settings.mysql_address)}",
        "--skip-name-resolve",
        "--skip-ssl",  # or every start makes a certificate, which takes seconds; all is on loopback
        "--character-set-server=utf8mb4",
        "--default-time-zone=+00:00",
        f"--innodb-buffer-pool-size={BUFFER_POOL_MB}M",
        "--innodb-log-file-size=64M",
        "--max-allowed-packet=64M",
        "--max-connections=200",
        "--performance-schema=OFF",
    ]


def socket_path(settings: Settings) -> Path:
    return settings.data_dir / "run" / "mysql.sock"


def _install(settings: Settings, folder: Path) -> None:
    home, unfinished = native_mysql(settings), folder / "data.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    # The script fails on a path with a space; the path through this process's open folder has none.
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    here = f"/proc/{os.getpid()}/fd/{opened}"
    try:
        install = [f"{home}/scripts/mariadb-install-db", "--no-defaults", f"--basedir={home}"]
        install += [f"--datadir={here}/{unfinished.name}", f"--tmpdir={here}/{_TMP}"]
        install += ["--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve", *_account()]
        done = subprocess.run(install, capture_output=True, text=True, check=False)
    finally:
        os.close(opened)
    if done.returncode != 0:
        raise ConfigurationError(
            f"MariaDB's system tables could not be made: {(done.stderr or done.stdout).strip()[-500:]}",
            "see 'deeplambda doctor' for free disk and memory",
        )
    unfinished.rename(folder / "data")


def _account() -> list[str]:
    return ["--user=root"] if os.geteuid() == 0 else []  # mariadbd runs as root only when told so
