"""What a worker claims, and when: one shard after the other, while there is room and Postgres takes what it is told."""

import math
import threading
import time
from collections.abc import Callable
from functools import partial

from sqlalchemy import Connection
from sqlalchemy import Engine as Database

from jobs import claims, db, fleet, leases, telemetry, tracing
from jobs.claims import BeAlone, Claimant, Claimed
from jobs.errors import Unavailable
from jobs.leases import Lease
from jobs.settings import Settings
from workers import endpoints, worker_metrics
from workers.engines.base import Engine
from workers.window import Window

log = telemetry.get_logger(__name__)

# How often a thread that waits for room looks by itself; the end of a shard wakes it.
ROOM_SECONDS = 0.05
# How often a worker that waits to be alone with a suspect asks for it: it stays reserved for ten times as long.
ASK_AGAIN_SECONDS = 1.0
# How long no hint is heard and nothing claimed after Postgres did not take a claim, or outcomes.
PAUSE_SECONDS = 5.0


class Claiming:
    """The shards that a worker holds, and the room for more. Any thread may use it; one claims at a time."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        engine: Engine,
        window: Window,
        *,
        worker_id: str,
        draining: threading.Event,
        on_too_old: Callable[[], None],
    ) -> None:
        self._settings, self._database, self._engine, self._window = settings, database, engine, window
        self._worker_id, self._draining, self._on_too_old = worker_id, draining, on_too_old
        self._claiming = threading.Lock()
        self._freed = threading.Condition()
        self.held: set[leases.Held] = set()
        # A suspect waits for this worker to hold nothing, or is all that it holds.
        self._is_to_be_alone = False
        # Rows of those that the window does not know yet.
        self._coming: dict[leases.Held, int] = {}
        # Postgres did not take the last claim, or outcomes: nothing is claimed before then (monotonic seconds).
        self._paused_until = 0.0

    def may_take(self, coming: int) -> bool:
        """Tell whether another shard may be taken, where `coming` hints are taken and have led to no claim yet.

        None may while claims are paused: a hint would be used up for nothing.
        """
        return time.monotonic() >= self._paused_until and self._has_room(coming)

    def take_hinted(self, shard_id: str) -> tuple[Lease, float] | None:
        """Claim as soon as there is room, on a hint that names a shard; return the lease and when it was asked for.

        The moment is in monotonic seconds. None: nothing waits, or this worker is to claim nothing more.
        """
        return self._take(partial(self._claim, shard_id))

    def take_next(self) -> tuple[Lease, float] | None:
        """Claim a shard whose hint may have got lost, as `take_hinted`; None also if there is no room now."""
        return self._take(self._claim_next) if self._has_room() else None

    def pause(self, error: Exception) -> None:
        """Claim nothing for a while. Any thread may call this."""
        if not self._paused_until:
            worker_metrics.CLAIM_PAUSES.inc()
            worker_metrics.CLAIMS_PAUSED.set(1)
            log.warning("claims_paused", error=db.reason(error))
        self._paused_until = time.monotonic() + PAUSE_SECONDS

    def seen_by_window(self, lease: Lease) -> None:
        """Note that the window knows the rows of a shard from now on."""
        self._coming.pop(lease.held, None)

    def free(self, lease: Lease) -> None:
        """Note that a shard is not held any more; whoever waits for room looks again."""
        if lease.is_suspect:
            # First: once nothing is held, the next suspect may be claimed.
            self._is_to_be_alone = False
        self.held.discard(lease.held)
        self._coming.pop(lease.held, None)
        with self._freed:
            self._freed.notify_all()

    def _has_room(self, coming: int = 0) -> bool:
        """Tell whether another shard may be claimed.

        Some are held in any case. More are, as long as they are so small that the engine would soon be idle. Beside a
        suspect, or when one waits, none is.
        """
        if self._is_to_be_alone:
            return not self.held
        if len(self.held) + coming < self._settings.worker.full_shards:
            return True
        waiting = sum(list(self._coming.values())) + sum(len(run.rows) for run in self._window.runs())
        return waiting + coming * self._settings.shards.max_requests < self._window.size

    def _take(self, claim: Callable[[], Claimed]) -> tuple[Lease, float] | None:
        with self._claiming:
            self._wait_for_room()
            started, lease = time.monotonic(), self._claim_if_needed(claim)
            while isinstance(lease, BeAlone):
                self._is_to_be_alone = True
                # Another worker may be alone before, and take the suspect.
                self._wait_for_room(ASK_AGAIN_SECONDS)
                if time.monotonic() < self._paused_until and not self._draining.is_set():
                    continue
                started, lease = time.monotonic(), self._claim_if_needed(partial(self._claim, lease.shard_id))
            self._is_to_be_alone = lease is not None and lease.is_suspect
            if lease is None:
                return None
            seconds = time.monotonic() - started
            tracing.note("claim", lease.batch_id, seconds, shard_id=lease.shard_id, worker_id=self._worker_id)
            self._coming[lease.held] = lease.remaining
            self.held.add(lease.held)
            return lease, started

    def _wait_for_room(self, seconds: float = math.inf) -> None:
        until = time.monotonic() + seconds
        with self._freed:
            while not (self._draining.is_set() or self.may_take(coming=0) or time.monotonic() >= until):
                self._freed.wait(ROOM_SECONDS)

    def _claim_if_needed(self, claim: Callable[[], Claimed]) -> Claimed:
        """Claim, unless the worker drains, or its engine died idle: the first row would be blamed for it."""
        return None if self._draining.is_set() or not self._engine.healthy() else self._try(claim)

    def _try(self, claim: Callable[[], Claimed]) -> Claimed:
        """Claim, and pause claims while Postgres is away or full; whatever was claimed unseen ends with its lease."""
        try:
            lease = claim()
        except Unavailable as error:
            self.pause(error)
            return None
        # Not one that the writer began in the meantime.
        if self._paused_until and time.monotonic() >= self._paused_until:
            worker_metrics.CLAIMS_PAUSED.set(0)
            log.info("claims_resumed")
            self._paused_until = 0.0
        return lease

    def _claim(self, shard_id: str) -> Claimed:
        return self._claim_if_new_enough(
            lambda connection: claims.claim(connection, shard_id, self._claimant), point="claim_hinted"
        )

    def _claim_if_new_enough(self, claim: Callable[[Connection], Claimed], *, point: str) -> Claimed:
        def work(connection: Connection) -> tuple[bool, Claimed]:
            may = fleet.may_claim(connection)
            return may, claim(connection) if may else None

        is_new_enough, claimed = db.once(self._database, work, point=point)
        if not is_new_enough:
            log.warning("worker_too_old", worker_id=self._worker_id, version=fleet.VERSION)
            self._on_too_old()
        return claimed

    @property
    def _claimant(self) -> Claimant:
        models, served = list(self._engine.models()), endpoints.served(self._engine)
        seconds = self._settings.shards.lease_seconds
        return Claimant(self._worker_id, models, served, seconds, alone=not self.held)

    @property
    def look_seconds(self) -> float:
        """How long a hint is waited for, and the time from one `take_next` to the following one.

        Together they are the interval within which a shard whose hint is lost is found.
        """
        return self._settings.worker.poll_seconds / 2

    def _claim_next(self) -> Claimed:
        return self._claim_if_new_enough(
            lambda connection: claims.claim_unhinted(connection, self._claimant, hint_seconds=self.look_seconds),
            point="claim_polled",
        )
