"""Starts what the tests need, and stops it by its own id: Postgres and Valkey from the wheels, and our processes.

`PROMPTMILL_TEST_DATABASE_URL` (a user that may create databases) and `PROMPTMILL_TEST_REDIS_URL` name others to use.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import redis
from sqlalchemy import Engine

from api.stack import postgres, valkey
from api.stack.program import Program, free_port, promptmill
from jobs import db, fleet, keys
from jobs.protocol import BATCH_ENDPOINTS

PASSWORD = "only-for-tests"
# Seals the secrets of webhooks of every test.
KEY_FILE = Path(__file__).with_name("webhooks.keys")
KEY_FILE_VARIABLE = "PROMPTMILL_WEBHOOKS__KEY_FILE"
# Leaves a variable out of a process' environment.
UNSET = "\0"
# The command as a user runs it. `python -m api` ends otherwise after Ctrl-C: by the signal, if that came while a library
# ran a text as code, which many do when they are imported.
PROMPTMILL = str(Path(sys.executable).with_name("promptmill"))
DATABASE_URL_VARIABLE, REDIS_URL_VARIABLE = "PROMPTMILL_TEST_DATABASE_URL", "PROMPTMILL_TEST_REDIS_URL"
# Short enough to see recovery, long enough for a busy machine with two cores.
SHORT_LEASES = {
    "PROMPTMILL_SHARDS__LEASE_SECONDS": "4",
    "PROMPTMILL_SHARDS__HEARTBEAT_SECONDS": "1",
    "PROMPTMILL_SHARDS__LEASE_MARGIN_SECONDS": "0.5",
    "PROMPTMILL_RECONCILER__SWEEP_SECONDS": "0.5",
    "PROMPTMILL_RECONCILER__HINT_SECONDS": "2",
    "PROMPTMILL_WORKER__POLL_SECONDS": "2",
}


# For tests in which no lease may be lost, however slow the machine.
LONG_LEASES = {"PROMPTMILL_SHARDS__LEASE_SECONDS": "120", "PROMPTMILL_SHARDS__HEARTBEAT_SECONDS": "1"}


def wait_until(condition: Callable[[], object], what: str, seconds: float = 60) -> None:
    """Return as soon as `condition` is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not after {seconds:g} seconds"
        time.sleep(0.05)


@contextlib.contextmanager
def running(program: Program, log: Path) -> Iterator["Process"]:
    """Run a program until the end of the block; ready when the block begins."""
    process = Process.start(program, log)
    try:
        yield process
    finally:
        process.stop()


@dataclass
class Process:
    """One program of the product, started for a test."""

    program: Program
    log: Path
    popen: subprocess.Popen[bytes]

    @classmethod
    def start(cls, program: Program, log: Path) -> "Process":
        with log.open("ab") as out:
            popen = subprocess.Popen(
                program.command(os.getpid()),
                stdout=out,
                stderr=out,
                env=dict(program.environment),
                start_new_session=True,
                cwd="/" if program.uid >= 0 else None,
            )
        process = cls(program, log, popen)
        try:
            process.wait_ready()
        except BaseException:
            process.stop()
            raise
        return process

    def wait_ready(self) -> None:
        deadline = time.monotonic() + self.program.start_seconds
        while self.program.ready and not asyncio.run(self.program.ready()):
            assert self.popen.poll() is None, f"{self.program.name} ended: {self.tail()}"
            assert time.monotonic() < deadline, f"{self.program.name} is not ready: {self.tail()}"
            time.sleep(0.05)

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-4000:]

    def kill(self) -> None:
        """Kill -9."""
        self.popen.kill()
        self.popen.wait()

    def stop(self) -> int:
        """Stop as the supervisor would, and return the exit status."""
        if self.popen.poll() is None:
            self.popen.send_signal(self.program.stop_signal)
            try:
                self.popen.wait(self.program.grace_seconds)
            except subprocess.TimeoutExpired:
                self.kill()
        return self.popen.returncode

    def signal(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)


@dataclass(frozen=True)
class Servers:
    """A Postgres server and a Redis server that the whole test run shares."""

    database_url: str
    redis_url: str

    def database(self, name: str) -> str:
        parts = urlsplit(self.database_url)
        return urlunsplit(parts._replace(path=f"/{name}"))


@contextlib.contextmanager
def servers(home: Path) -> Iterator[Servers]:
    """Start the servers that no variable names."""
    with contextlib.ExitStack() as stack:
        database_url = os.environ.get(DATABASE_URL_VARIABLE) or stack.enter_context(_postgres(home))
        redis_url = os.environ.get(REDIS_URL_VARIABLE) or stack.enter_context(valkey_server(home))
        yield Servers(database_url, redis_url)


@contextlib.contextmanager
def _postgres(home: Path) -> Iterator[str]:
    port = free_port()
    postgres.initialise(home / "postgres", PASSWORD)
    # Nothing of a test run has to survive the machine.
    with running(postgres.program(home / "postgres", port, PASSWORD, {"fsync": "off"}), home / "postgres.log"):
        yield postgres.url(port, PASSWORD, "postgres")


@contextlib.contextmanager
def valkey_server(home: Path) -> Iterator[str]:
    """Start a Valkey and yield its URL."""
    port = free_port()
    with running(valkey.program(home / "valkey", port, PASSWORD), home / "valkey.log"):
        yield valkey.url(port, PASSWORD)


@contextlib.contextmanager
def fresh_database(servers: Servers, template: str | None = None) -> Iterator[str]:
    """Make a database of its own, a copy of `template` if that is named, and drop it at the end. Yield its name."""
    name = f"promptmill_test_{uuid.uuid4().hex}"
    with psycopg.connect(servers.database_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}" + (f" TEMPLATE {template}" if template else ""))
    try:
        yield name
    finally:
        with psycopg.connect(servers.database_url, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@dataclass
class Stack:
    """The product's processes on one database, as many as a test starts."""

    home: Path
    database_url: str
    redis_url: str
    settings: Mapping[str, str]
    port: int = field(default_factory=free_port)
    processes: list[Process] = field(default_factory=list)
    worker_python: str = sys.executable
    """Workers may live in an environment of their own."""
    start_seconds: float = 60
    acknowledged: dict[str, bytes] = field(default_factory=dict)
    """What clients were told is there: the bytes of their files by id."""
    read: dict[str, set[bytes]] = field(default_factory=lambda: defaultdict(set))
    """What clients saw: lines of result files by id."""
    leaves_open: bool = False
    """Whether its test is over before all its batches are."""

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def environment(self, **more: str) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PROMPTMILL_")}
        whole = {
            **inherited,
            "PROMPTMILL_DATABASE_URL": self.database_url,
            "PROMPTMILL_REDIS_URL": self.redis_url,
            "PROMPTMILL_API__PORT": str(self.port),
            KEY_FILE_VARIABLE: str(KEY_FILE),
            **self.settings,
            **more,
        }
        return {name: value for name, value in whole.items() if value != UNSET}

    def start(self, name: str, *, wait_for: str = "", **environment: str) -> Process:
        """Start `promptmill NAME`; it is ready when it has logged `wait_for`."""
        log = self.home / f"{name}-{len(self.processes)}.log"

        async def ready() -> bool:
            return log.exists() and wait_for in log.read_text(errors="replace")

        # A drain of a test is over long before these 40 seconds.
        program = Program(
            name,
            [self.worker_python if name == "worker" else sys.executable, *promptmill(name)[1:]],
            ready,
            environment=self.environment(**environment),
            grace_seconds=40,
            start_seconds=self.start_seconds,
        )
        process = Process.start(program, log)
        self.processes.append(process)
        return process

    def api(self, **environment: str) -> Process:
        return self.start("serve", wait_for="Uvicorn running on", **environment)

    def worker(self, **environment: str) -> Process:
        return self.start("worker", wait_for="worker_ready", **environment)

    def reconciler(self) -> Process:
        return self.start("reconciler", wait_for="reconciler_ready")

    def engine(self) -> Engine:
        return db.make_engine(self.database_url, connections=5)

    def key(self, project: str | None = None) -> str:
        """Make a key, for a project of its own unless one is named."""
        engine = self.engine()
        with db.transaction(engine) as connection:
            key = keys.create(connection, project=project or uuid.uuid4().hex, name="test")
        engine.dispose()
        return key

    def know_model(self, name: str) -> None:
        """Make a model known as if a worker had served it lately."""
        engine = self.engine()
        with db.transaction(engine) as connection:
            fleet.register(
                connection, f"worker_{uuid.uuid4().hex}", engine="none", models=[name], endpoints=BATCH_ENDPOINTS
            )
        engine.dispose()

    def redis(self) -> "redis.Redis":
        return redis.Redis.from_url(self.redis_url)

    def stop(self) -> None:
        for process in reversed(self.processes):
            process.stop()


@contextlib.contextmanager
def fresh_stack(
    servers: Servers, template: str, home: Path, settings: Mapping[str, str], **options: Any
) -> Iterator[Stack]:
    """Make a stack on a database of its own and an empty Redis, with short leases; `options` are fields of `Stack`."""
    with fresh_database(servers, template) as name:
        made = Stack(home, servers.database(name), servers.redis_url, {**SHORT_LEASES, **settings}, **options)
        with made.redis() as broker:
            broker.flushall()
        try:
            yield made
        finally:
            made.stop()


@contextlib.contextmanager
def scripted_stack(servers: Servers, template: str, home: Path) -> Iterator[Stack]:
    """Make a fresh stack with the scripted engine."""
    with fresh_stack(servers, template, home, {"PROMPTMILL_WORKER__ENGINE": "scripted"}) as made:
        yield made


@contextlib.contextmanager
def running_stack(servers: Servers, template: str, home: Path) -> Iterator[Stack]:
    """Make a fresh stack with the scripted engine; API, reconciler and a worker run."""
    with scripted_stack(servers, template, home) as made:
        made.api()
        made.reconciler()
        made.worker()
        yield made
