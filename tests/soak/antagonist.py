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
from proxies import GOOD, TOXICS, Proxy, Toxic
from soak.world import World

# Between two faults, seconds.
PAUSE = 1, 6
LEASE_SECONDS = float(services.SHORT_LEASES["PROMPTMILL_SHARDS__LEASE_SECONDS"])
KILL_SESSIONS = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname IS NOT NULL"
)
WAITS = "SELECT pid FROM pg_locks WHERE relation = to_regclass(%s) AND NOT granted"
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
class Fault:
    """One that was injected, when (seconds since 1970), and what."""

    at: float
    kind: str
    has_bitten: bool = False
    """It is known to have met something: a process that lived, a line that carried something, a lock in the way."""


@dataclass
class Antagonist:
    """`faults` are those so far."""

    world: World
    random: random.Random
    faults: list[Fault] = field(default_factory=list)
    _undos: list[tuple[float, int, Undo]] = field(default_factory=list)
    _numbers: "itertools.count[int]" = field(default_factory=itertools.count)
    _poisoned: dict[Proxy, Fault] = field(default_factory=dict)
    """Lines that are bad, and by which fault."""
    _silenced: dict[Proxy, Fault] = field(default_factory=dict)
    """Lines on which a COMMIT is not to be answered, and by which fault."""

    def run(self, seconds: float) -> None:
        """Do harm for so long, and make everything good again."""
        end = time.monotonic() + seconds
        kinds: list[str] = []
        while time.monotonic() < end:
            kinds = kinds or self.random.sample(list(KINDS), len(KINDS))
            self._harm(kinds.pop())
            self._wait(min(self.random.uniform(*PAUSE), end - time.monotonic()))
        self._wait(0, everything=True)
        for proxy in tuple(self._silenced):
            self._note_silenced(proxy)

    def _harm(self, kind: str) -> None:
        fault = Fault(time.time(), kind)
        # What a fault needs may be away, by another one.
        with contextlib.suppress(NotNow, psycopg.OperationalError, redis.RedisError):
            KINDS[kind](self, fault)
            self.faults.append(fault)
            print(f"{time.strftime('%H:%M:%S')} {kind}", flush=True)

    def _later(self, seconds: float, undo: Undo) -> None:
        heapq.heappush(self._undos, (time.monotonic() + seconds, next(self._numbers), undo))

    def _wait(self, seconds: float, *, everything: bool = False) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end or (everything and self._undos):
            while self._undos and (everything or self._undos[0][0] <= time.monotonic()):
                heapq.heappop(self._undos)[2]()
            time.sleep(0.05)

    def _signal(self, fault: Fault, command: str, number: signal.Signals) -> None:
        process = self.random.choice(self.world.kept[command]).process
        fault.has_bitten = process.popen.poll() is None
        process.signal(number)

    def _stop_worker(self, fault: Fault) -> None:
        process = self.random.choice(self.world.kept["worker"]).process
        fault.has_bitten = process.popen.poll() is None
        process.signal(signal.SIGSTOP)
        self._later(LEASE_SECONDS + self.random.uniform(0, 4), partial(process.signal, signal.SIGCONT))

    def _line(self, fault: Fault, server: str, name: str) -> None:
        proxy = self.random.choice(self.world.lines[server])
        self._poison(proxy, TOXICS[name])
        self._poisoned[proxy] = fault
        if TOXICS[name].close_seconds:
            # Nobody would notice before somebody hangs up.
            proxy.reset()
        self._later(self.random.uniform(1, 6), partial(self._poison, proxy, GOOD))

    def _poison(self, proxy: Proxy, toxic: Toxic) -> None:
        # The proxy counts the next one's harm from zero.
        if earlier := self._poisoned.pop(proxy, None):
            earlier.has_bitten = proxy.harmed > 0
        proxy.poison(toxic)

    def _reset(self, fault: Fault, server: str) -> None:
        proxy = self.random.choice(self.world.lines[server])
        before = proxy.harmed
        proxy.reset()
        fault.has_bitten = proxy.harmed > before

    def _silence_commit(self, fault: Fault) -> None:
        proxy = self.random.choice(self.world.lines["Postgres"])
        self._note_silenced(proxy)
        self._silenced[proxy] = fault
        proxy.cut_commit(self.random.choice(MARKERS))

    def _note_silenced(self, proxy: Proxy) -> None:
        if fault := self._silenced.pop(proxy, None):
            fault.has_bitten = proxy.commits_cut > 0

    def _crash_postgres(self, fault: Fault) -> None:
        server = self.world.postgres
        if server.popen.poll() is not None:
            raise NotNow
        server.signal(signal.SIGQUIT)
        server.popen.wait()
        fault.has_bitten = True
        self._later(self.random.uniform(0, 3), self.world.start_postgres)

    def _kill_sessions(self, fault: Fault) -> None:
        with self._session() as session:
            fault.has_bitten = session.execute(KILL_SESSIONS).rowcount > 0

    def _session(self) -> "psycopg.Connection[tuple[object, ...]]":
        return psycopg.connect(self.world.stack.database_url, connect_timeout=5, options="-c statement_timeout=5000")

    def _lock(self, fault: Fault, table: str) -> None:
        session = self._session()
        try:
            session.execute(f"LOCK TABLE {table}")
        except psycopg.Error:
            session.close()
            raise
        self._later(self.random.uniform(1, 6), partial(self._unlock, fault, session, table))

    def _unlock(self, fault: Fault, session: "psycopg.Connection[tuple[object, ...]]", table: str) -> None:
        # Another fault may have ended the session.
        with contextlib.suppress(psycopg.Error):
            fault.has_bitten = session.execute(WAITS, (table,)).rowcount > 0
        session.close()

    def _kill_redis(self, fault: Fault) -> None:
        if self.world.redis.process.popen.poll() is not None:
            raise NotNow
        self.world.redis.process.kill()
        fault.has_bitten = True
        self._later(self.random.uniform(0, 4), self.world.redis.start)

    def _flush_redis(self, fault: Fault) -> None:
        with self.world.redis.client() as client:
            fault.has_bitten = bool(client.dbsize())
            client.flushall()

    def _cut_redis(self, fault: Fault) -> None:
        with self.world.redis.client() as client:
            fault.has_bitten = bool(client.client_kill_filter(_type="normal", skipme=True))

    def _bomb(self, fault: Fault) -> None:
        """Put into the queue what no hint is, and hints of shards that are done or run."""
        with self._session() as session:
            shards = [str(row[0]) for row in session.execute("SELECT id FROM shards ORDER BY random() LIMIT 50")]
        with self.world.redis.client() as client:
            for message in brokers.poison(shards[0] if shards else "shard_none") + brokers.hints(shards):
                client.lpush(brokers.QUEUE, message)
        fault.has_bitten = True


KINDS: dict[str, Callable[[Antagonist, Fault], None]] = {
    "worker: kill -9": lambda self, fault: self._signal(fault, "worker", signal.SIGKILL),
    "worker: SIGTERM": lambda self, fault: self._signal(fault, "worker", signal.SIGTERM),
    "worker: stopped beyond its lease": Antagonist._stop_worker,
    "API: kill -9": lambda self, fault: self._signal(fault, "serve", signal.SIGKILL),
    "reconciler: kill -9": lambda self, fault: self._signal(fault, "reconciler", signal.SIGKILL),
    "Redis: FLUSHALL": Antagonist._flush_redis,
    "Redis: kill -9": Antagonist._kill_redis,
    "Redis: every connection killed": Antagonist._cut_redis,
    "Redis: garbage and old hints in the queue": Antagonist._bomb,
    "Postgres: immediate stop": Antagonist._crash_postgres,
    "Postgres: every session killed": Antagonist._kill_sessions,
    "Postgres: shards locked": lambda self, fault: self._lock(fault, "shards"),
    "Postgres: results locked": lambda self, fault: self._lock(fault, "results"),
    "Postgres: a COMMIT of a worker is not answered": Antagonist._silence_commit,
    **{
        f"line of a worker to {server}: {name}": lambda self, fault, server=server, name=name: (  # type: ignore[misc]
            self._line(fault, server, name)
        )
        for server in ("Postgres", "Redis")
        for name in TOXICS
    },
    **{
        f"line of a worker to {server}: reset once": lambda self, fault, server=server: self._reset(fault, server)  # type: ignore[misc]
        for server in ("Postgres", "Redis")
    },
}
