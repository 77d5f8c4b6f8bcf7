"""What a soak runs on: a Postgres with fsync, a Valkey, and processes that a supervisor starts again when they end.

Each worker speaks to both servers through proxies of its own.
"""

import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import brokers
import proxies
import services
from conftest import migrate
from proxies import Proxy

from api.stack import postgres
from api.stack.program import Program, free_port, promptmill

WORKERS, APIS, RECONCILERS = 3, 2, 2
# A supervisor lets a moment pass before it starts a process again.
PAUSE_SECONDS = 0.5
SETTINGS = {
    **services.SHORT_LEASES,
    "PROMPTMILL_WORKER__ENGINE": "scripted",
    # Many shards on the way, and few rows aboard when an engine dies.
    "PROMPTMILL_SHARDS__MAX_REQUESTS": "32",
    "PROMPTMILL_WORKER__SCRIPTED_CAPACITY": "64",
    "PROMPTMILL_WORKER__WAITING_REQUESTS": "32",
    "PROMPTMILL_WORKER__DRAIN_SECONDS": "3",
    "PROMPTMILL_WORKER__BREAKER_SECONDS": "1",
    "PROMPTMILL_WORKER__BREAKER_MAX_SECONDS": "5",
    # A connection that does not answer is given up soon after.
    "PROMPTMILL_STATEMENT_SECONDS": "3",
}


class Kept(threading.Thread):
    """A process that is started again whenever it ends, until `close`.

    `ends` are its exit statuses so far, `deaths` the process ids that ended and when (seconds since 1970).
    """

    def __init__(self, program: Program, log: Path) -> None:
        # Daemon: a soak that fails must not wait for it.
        super().__init__(name=f"keeps {log.stem}", daemon=True)
        self.ends: list[int] = []
        self.deaths: list[tuple[int, float]] = []
        self.log = log
        self._program, self._over = program, threading.Event()
        self.process = services.Process.start(program, log)

    def run(self) -> None:
        while not self._over.is_set():
            while self.process.popen.poll() is None and not self._over.wait(0.05):
                pass
            if self.process.popen.poll() is None:
                continue
            self.deaths.append((self.process.popen.pid, time.time()))
            if self._over.wait(PAUSE_SECONDS):
                continue
            self.ends.append(self.process.popen.returncode)
            self.process = services.Process.start(self._program, self.log)
        self.process.stop()

    def close(self) -> None:
        self._over.set()
        self.join()


@dataclass
class World:
    """Everything that faults are done to."""

    stack: services.Stack
    postgres: services.Process
    redis: brokers.OwnRedis
    ports: Sequence[int]
    lines: dict[str, list[Proxy]]
    """By server, one for each worker."""
    kept: dict[str, list[Kept]]
    """By command."""

    def start_postgres(self) -> None:
        self.postgres = services.Process.start(self.postgres.program, self.postgres.log)

    @property
    def base_urls(self) -> list[str]:
        return [f"http://127.0.0.1:{port}/v1" for port in self.ports]


@contextmanager
def running(home: Path) -> Iterator[World]:
    """Run one until the end of the block. Logs are below `home`."""
    with ExitStack() as opened:
        # Not below pytest's own folder, which Postgres, run as another user when we are root, may not enter.
        data = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="promptmill-test-")))
        database, server = _postgres(data, home)
        redis = brokers.OwnRedis(home)
        stack = services.Stack(home, database, redis.url, SETTINGS)
        lines = {
            "Postgres": [opened.enter_context(proxies.serving(database)) for _ in range(WORKERS)],
            "Redis": [opened.enter_context(proxies.serving(redis.url)) for _ in range(WORKERS)],
        }
        made = World(stack, server, redis, [free_port() for _ in range(APIS)], lines, {})
        opened.callback(_stop_servers, made)
        migrate(database)
        stack.know_model("scripted")
        made.kept = _processes(made)
        for each in _all(made):
            opened.callback(each.close)
            each.start()
        _wait_ready(made)
        yield made


def _postgres(data: Path, home: Path) -> tuple[str, services.Process]:
    port = free_port()
    postgres.initialise(data / "postgres", services.PASSWORD)
    # When each result was committed is what recovery is measured by. Connections that nobody hears of stay for a while.
    options = {"track_commit_timestamp": "on", "max_connections": "300"}
    program = postgres.program(data / "postgres", port, services.PASSWORD, options)
    return postgres.url(port, services.PASSWORD, "postgres"), services.Process.start(program, home / "postgres.log")


def _stop_servers(world: World) -> None:
    world.postgres.stop()
    world.redis.process.stop()


def _processes(world: World) -> dict[str, list[Kept]]:
    apis: list[dict[str, str]] = [{"PROMPTMILL_API__PORT": str(port)} for port in world.ports]
    workers = [
        {"PROMPTMILL_DATABASE_URL": database.url, "PROMPTMILL_REDIS_URL": redis.url}
        for database, redis in zip(world.lines["Postgres"], world.lines["Redis"], strict=True)
    ]
    reconcilers: list[dict[str, str]] = [{}] * RECONCILERS
    environments = {"serve": apis, "reconciler": reconcilers, "worker": workers}
    return {name: [_kept(world, name, n, one) for n, one in enumerate(each)] for name, each in environments.items()}


def _kept(world: World, name: str, number: int, environment: dict[str, str]) -> Kept:
    # A drain of a worker is over long before these 20 seconds.
    program = Program(name, promptmill(name), environment=world.stack.environment(**environment), grace_seconds=20)
    return Kept(program, world.stack.home / f"{name}-{number}.log")


def _all(world: World) -> list[Kept]:
    return [each for kept in world.kept.values() for each in kept]


READY = {"serve": "Uvicorn running on", "reconciler": "reconciler_ready", "worker": "worker_ready"}


def _wait_ready(world: World) -> None:
    for name, kept in world.kept.items():
        for each in kept:
            services.wait_until(partial(_has_said, each.log, READY[name]), f"{name} is ready", 120)


def _has_said(log: Path, words: str) -> bool:
    return words in log.read_text(errors="replace")
