"""Does harm, one thing after the other, as its seed says. Every kind has come by before one comes again."""

import contextlib
import heapq
import itertools
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import brokers
import psycopg
import redis
import services
from proxies import GOOD, TOXICS, Toxic
from soak.world import World

# Between two faults, seconds.
PAUSE = 1, 6
LEASE_SECONDS = float(services.SHORT_LEASES["PROMPTMILL_SHARDS__LEASE_SECONDS"])
KILL_SESSIONS = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname IS NOT NULL"
)
# Of a transaction whose COMMIT is not answered.
MARKERS = [
    b"lease_token = s.lease_token + 1",
    b"COPY results",
    b"SET lease_until = app_now()",
    b"finalizing_at=app_now()",
]
Undo = Callable[[], None]


class NotNow(Exception):
    """What the fault would be done to is away."""


@dataclass
class Antagonist:
    """`faults` are those so far: when, seconds since 1970, and what."""

    world: World
    random: random.Random
    faults: list[tuple[float, str]] = field(default_factory=list)
    _undos: list[tuple[float, int, Undo]] = field(default_factory=list)
    _numbers: "itertools.count[int]" = field(default_factory=itertools.count)

    def run(self, seconds: float) -> None:
        """Do harm for so long, and make everything good again."""
        end = time.monotonic() + seconds
        kinds: list[str] = []
        while time.monotonic() < end:
            kinds = kinds or self.random.sample(list(KINDS), len(KINDS))
            self._harm(kinds.pop())
            self._wait(min(self.random.uniform(*PAUSE), end - time.monotonic()))
        self._wait(0, everything=True)

    def _harm(self, kind: str) -> None:
        before = time.time()
        # What a fault needs may be away, by another one.
        with contextlib.suppress(NotNow, psycopg.OperationalError, redis.RedisError):
            KINDS[kind](self)
            self.faults.append((before, kind))
            print(f"{time.strftime('%H:%M:%S')} {kind}", flush=True)

    def _later(self, seconds: float, undo: Undo) -> None:
        heapq.heappush(self._undos, (time.monotonic() + seconds, next(self._numbers), undo))

    def _wait(self, seconds: float, *, everything: bool = False) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end or (everything and self._undos):
            while self._undos and (everything or self._undos[0][0] <= time.monotonic()):
                heapq.heappop(self._undos)[2]()
            time.sleep(0.05)

    def _signal(self, command: str, number: signal.Signals) -> None:
        self.random.choice(self.world.kept[command]).process.signal(number)

    def _stop_worker(self) -> None:
        process = self.random.choice(self.world.kept["worker"]).process
        process.signal(signal.SIGSTOP)
        self._later(LEASE_SECONDS + self.random.uniform(0, 4), partial(process.signal, signal.SIGCONT))

    def _line(self, server: str, name: str) -> None:
        proxy = self.random.choice(self.world.lines[server])
        self._poison(proxy.poison, TOXICS[name])

    def _poison(self, poison: Callable[[Toxic], None], toxic: Toxic) -> None:
        poison(toxic)
        self._later(self.random.uniform(1, 6), partial(poison, GOOD))

    def _reset(self, server: str) -> None:
        self.random.choice(self.world.lines[server]).reset()

    def _silence_commit(self) -> None:
        self.random.choice(self.world.lines["Postgres"]).cut_commit(self.random.choice(MARKERS))

    def _crash_postgres(self) -> None:
        server = self.world.postgres
        if server.popen.poll() is not None:
            raise NotNow
        server.signal(signal.SIGQUIT)
        server.popen.wait()
        self._later(self.random.uniform(0, 3), self.world.start_postgres)

    def _kill_sessions(self) -> None:
        with self._session() as session:
            session.execute(KILL_SESSIONS)

    def _session(self) -> "psycopg.Connection[tuple[object, ...]]":
        return psycopg.connect(self.world.stack.database_url, connect_timeout=5, options="-c statement_timeout=5000")

    def _lock(self, table: str) -> None:
        session = self._session()
        try:
            session.execute(f"LOCK TABLE {table}")
        except psycopg.Error:
            session.close()
            raise
        self._later(self.random.uniform(1, 6), session.close)

    def _kill_redis(self) -> None:
        if self.world.redis.process.popen.poll() is not None:
            raise NotNow
        self.world.redis.process.kill()
        self._later(self.random.uniform(0, 4), self.world.redis.start)

    def _flush_redis(self) -> None:
        with self.world.redis.client() as client:
            client.flushall()

    def _cut_redis(self) -> None:
        with self.world.redis.client() as client:
            client.client_kill_filter(_type="normal", skipme=True)

    def _bomb(self) -> None:
        """Put into the queue what no hint is, and hints of shards that are done or run."""
        with self._session() as session:
            shards = [str(row[0]) for row in session.execute("SELECT id FROM shards ORDER BY random() LIMIT 50")]
        with self.world.redis.client() as client:
            for message in brokers.poison(shards[0] if shards else "shard_none") + brokers.hints(shards):
                client.lpush(brokers.QUEUE, message)


KINDS: dict[str, Callable[[Antagonist], None]] = {
    "worker: kill -9": lambda self: self._signal("worker", signal.SIGKILL),
    "worker: SIGTERM": lambda self: self._signal("worker", signal.SIGTERM),
    "worker: stopped beyond its lease": Antagonist._stop_worker,
    "API: kill -9": lambda self: self._signal("serve", signal.SIGKILL),
    "reconciler: kill -9": lambda self: self._signal("reconciler", signal.SIGKILL),
    "Redis: FLUSHALL": Antagonist._flush_redis,
    "Redis: kill -9": Antagonist._kill_redis,
    "Redis: every connection killed": Antagonist._cut_redis,
    "Redis: garbage and old hints in the queue": Antagonist._bomb,
    "Postgres: immediate stop": Antagonist._crash_postgres,
    "Postgres: every session killed": Antagonist._kill_sessions,
    "Postgres: shards locked": lambda self: self._lock("shards"),
    "Postgres: results locked": lambda self: self._lock("results"),
    "Postgres: a COMMIT of a worker is not answered": Antagonist._silence_commit,
    **{
        f"line of a worker to {server}: {name}": lambda self, server=server, name=name: self._line(server, name)  # type: ignore[misc]
        for server in ("Postgres", "Redis")
        for name in TOXICS
    },
    **{
        f"line of a worker to {server}: reset": lambda self, server=server: self._reset(server)  # type: ignore[misc]
        for server in ("Postgres", "Redis")
    },
}
