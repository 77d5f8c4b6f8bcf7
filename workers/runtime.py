"""A running worker: the engine on its event loop, and the threads around it.

main thread    Celery (or nothing, in tests)
event loop     engine, window
writer         outcomes -> Postgres
lease keeper   heartbeats
poller         shards whose hint got lost
Celery pool    one thread for each shard held, waiting most of its time
"""

import asyncio
import gc
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from sqlalchemy import Connection

from jobs import claims, db, fleet, ids, leases, lifecycle, telemetry
from jobs.claims import Claimant
from jobs.errors import Unavailable
from jobs.leases import Lease
from jobs.settings import Settings
from workers import endpoints, engines, revisions
from workers.images.resolver import READERS, Resolver
from workers.keeper import LeaseKeeper
from workers.window import Ending, ShardRun, Window
from workers.writer import Writer

log = telemetry.get_logger(__name__)

# sysexits.h EX_SOFTWARE: the engine is gone, a supervisor should start this process again.
EXIT_ENGINE_DEAD = 70
# What a dying worker gives its threads to hand their shards back.
LAST_WORDS_SECONDS = 5.0
# How often a thread that waits for room looks by itself; the end of a shard wakes it.
ROOM_SECONDS = 0.05
# Connections to Postgres: claims go one at a time, the writer has one, several shards may end at once.
TALKERS = 10


class Runtime:
    """Everything a worker process does, apart from how it hears of shards."""

    def __init__(self, settings: Settings) -> None:
        self.worker_id = ids.new_worker_id()
        self._settings = settings
        self._engine = engines.make(settings.worker)
        url = settings.database_url.get_secret_value()
        self._database = db.make_engine(url, connections=TALKERS + READERS)
        self._heartbeats = db.make_engine(url, connections=1)
        self._loop = asyncio.new_event_loop()
        self._slots = threading.Semaphore(settings.worker.max_shards)
        self._draining = threading.Event()
        self._poll_now = threading.Event()
        self._dying = threading.Lock()
        self._claiming = threading.Lock()
        self._freed = threading.Condition()
        # Shards held that a hint named.
        self._hinted: set[leases.Held] = set()
        self._held: set[leases.Held] = set()
        # Rows of those that the window does not know yet.
        self._coming: dict[leases.Held, int] = {}

    def start(self) -> None:
        """Load the model and make this worker known. Nothing is claimed before this returns.

        Raises:
            ConfigurationError: the engine cannot be started, or this version is too old.
            Unavailable: Postgres is away.
        """
        # Before the model is loaded, which may take minutes.
        with db.transaction(self._database) as connection:
            fleet.check_version(connection)
        threading.Thread(target=self._loop.run_forever, name="engine-loop", daemon=True).start()
        asyncio.run_coroutine_threadsafe(self._engine.start(), self._loop).result()
        # What is loaded by now stays loaded: the collector need not look through it again and again.
        gc.collect()
        gc.freeze()
        self._wire()
        self._writer.start()
        self._keeper.start()
        with db.transaction(self._database) as connection:
            fleet.register(
                connection,
                self.worker_id,
                engine=self._engine.name,
                models=self.models,
                endpoints=endpoints.served(self._engine),
                revision=revisions.of(self._settings.worker),
            )
        log.info("worker_ready", worker_id=self.worker_id, engine=self._engine.name, models=list(self.models))

    def _wire(self) -> None:
        options = self._settings.worker
        self._images = Resolver(self._settings.images, self._database)
        capacity = self._engine.capacity()
        self._window = Window(
            self._engine,
            self._loop,
            size=capacity + min(capacity, options.waiting_requests),
            max_unwritten=options.max_unwritten,
            request_timeout_seconds=options.request_timeout_seconds,
            sink=lambda *item: self._writer.put(*item),  # noqa: PLW0108  the writer is made below
            on_fatal=self._die_soon,
            images=self._images,
        )
        self._writer = Writer(
            self._database,
            flush_outcomes=options.flush_outcomes,
            flush_seconds=options.flush_seconds,
            written=self._window.written,
            lost=lambda run: self._window.end(run, Ending.LOST, abort=True),
        )
        self._keeper = LeaseKeeper(
            self._heartbeats,
            self._window,
            self._engine,
            worker_id=self.worker_id,
            settings=self._settings.shards,
            on_stall=self._die_now,
        )

    @property
    def models(self) -> list[str]:
        return list(self._engine.models())

    # Hearing of shards.

    def run_shard(self, shard_id: str) -> dict[str, Any]:
        """Run a shard that a hint named, to its end. Return what Flower is to show: ids and counts."""
        with self._slots:
            taken = self._take(lambda: self._claim(shard_id))
            if taken is None:
                return {"claimed": False}
            self._hinted.add(taken[0].held)
            return self._run_lease(*taken)

    def may_hear(self, hints: int) -> bool:
        """Tell whether another hint may be taken out of Redis, where `hints` are taken and not done with.

        What a hint stands for is not known before the claim, so each counts as a full shard until then.
        """
        return self._has_room(coming=hints - len(self._hinted))

    def _has_room(self, coming: int = 0) -> bool:
        """Tell whether another shard may be claimed.

        Some are held in any case. More are, as long as they are so small that the engine would soon be idle.
        """
        if len(self._held) + coming < self._settings.worker.full_shards:
            return True
        waiting = sum(list(self._coming.values())) + sum(len(run.rows) for run in self._window.runs())
        return waiting + coming * self._settings.shards.max_requests < self._window.size

    def _take(self, claim: Callable[[], Lease | None]) -> tuple[Lease, float] | None:
        """Claim as soon as there is room, one at a time; return the lease and when it was asked for."""
        with self._claiming:
            with self._freed:
                while not (self._draining.is_set() or self._has_room()):
                    self._freed.wait(ROOM_SECONDS)
            started = time.monotonic()
            lease = None if self._draining.is_set() else claim()
            if lease is None:
                return None
            self._coming[lease.held] = lease.remaining
            self._held.add(lease.held)
            return lease, started

    def _claim(self, shard_id: str) -> Lease | None:
        return self._claim_if_new_enough(lambda connection: claims.claim(connection, shard_id, self._claimant))

    def _claim_if_new_enough(self, claim: Callable[[Connection], Lease | None]) -> Lease | None:
        with db.transaction(self._database) as connection:
            if fleet.may_claim(connection):
                return claim(connection)
        log.warning("worker_too_old", worker_id=self.worker_id, version=fleet.VERSION)
        self.drain()
        # Whoever serves this worker ends it as when it is asked to go.
        os.kill(os.getpid(), signal.SIGTERM)
        return None

    @property
    def _claimant(self) -> Claimant:
        seconds = self._settings.shards.lease_seconds
        return Claimant(self.worker_id, self.models, endpoints.served(self._engine), seconds)

    def poll(self) -> None:
        """Look into Postgres for shards whose hint got lost, until the worker drains. A thread of its own."""
        with ThreadPoolExecutor(self._settings.worker.max_shards, thread_name_prefix="polled") as pool:
            while not self._draining.is_set():
                try:
                    while self._slots.acquire(blocking=False):
                        if not self._poll_one(pool):
                            break
                except Exception as error:  # noqa: BLE001  the next look may succeed
                    log.warning("poll_failed", error=type(error).__name__)
                self._poll_now.wait(self._settings.worker.poll_seconds)
                self._poll_now.clear()

    def _poll_one(self, pool: ThreadPoolExecutor) -> bool:
        """Claim the next shard and run it on `pool`; the caller's slot goes with it, or is given back."""
        try:
            taken = self._take(self._claim_next) if self._has_room() else None
        except BaseException:
            self._slots.release()
            raise
        if taken is None:
            self._slots.release()
            return False
        pool.submit(self._run_polled, *taken)
        return True

    def _claim_next(self) -> Lease | None:
        seconds = self._settings.worker.poll_seconds
        return self._claim_if_new_enough(
            lambda connection: claims.claim_unhinted(connection, self._claimant, hint_seconds=seconds)
        )

    def _run_polled(self, lease: Lease, started: float) -> None:
        try:
            self._run_lease(lease, started)
        except Exception as error:
            log.exception("shard_failed", shard_id=lease.shard_id, error=type(error).__name__)
        finally:
            self._slots.release()
            self._poll_now.set()

    # Running one.

    def _run_lease(self, lease: Lease, started: float) -> dict[str, Any]:
        try:
            return self._run_to_end(lease, started)
        finally:
            self._held.discard(lease.held)
            self._coming.pop(lease.held, None)
            self._hinted.discard(lease.held)
            with self._freed:
                self._freed.notify_all()

    def _run_to_end(self, lease: Lease, started: float) -> dict[str, Any]:
        run = self._load(lease, started)
        rows = len(run.rows)
        self._window.add(run)
        # After the window has heard of it.
        self._loop.call_soon_threadsafe(self._coming.pop, lease.held, None)
        if self._draining.is_set():
            self._window.end(run, Ending.LET_GO, abort=False)
        run.ended.wait()
        self._hand_back(run)
        log.info("shard_ended", shard_id=lease.shard_id, batch_id=lease.batch_id, rows=rows, ending=str(run.ending))
        return {"claimed": True, "batch": lease.batch_id, "rows": rows, "ending": str(run.ending)}

    def _load(self, lease: Lease, started: float) -> ShardRun:
        rows = db.retrying(self._database, lambda connection: leases.load_rows(connection, lease))
        if len(rows) != lease.remaining:
            log.error("rows_missing", shard_id=lease.shard_id, found=len(rows), remaining=lease.remaining)
        shards = self._settings.shards
        return ShardRun(
            lease=lease,
            rows=deque(rows),
            lease_deadline=started + shards.lease_seconds - shards.lease_margin_seconds,
            start_deadline=started + lease.seconds_left,
        )

    def _hand_back(self, run: ShardRun) -> None:
        """Release what is not done, and end the batch if this was the last of it.

        Also after a lease was lost: it may still be ours by the database's clock, and where it is not, nothing happens.
        """
        lease, retention = run.lease, self._settings.retention
        try:
            if run.ending is not Ending.DONE:
                db.retrying(self._database, lambda connection: leases.release(connection, *lease.held))
            db.retrying(self._database, lambda connection: lifecycle.settle(connection, lease.batch_id, retention))
        except Unavailable:
            # The reconciler does both.
            log.warning("not_handed_back", shard_id=lease.shard_id)

    # Ending.

    def drain(self) -> None:
        """Start nothing more. Rows that run may finish within `worker.drain_seconds`; the rest is given back."""
        if self._draining.is_set():
            return
        log.info("worker_draining", shards=len(self._window.runs()))
        self._draining.set()
        self._poll_now.set()
        self._let_go(abort=False)
        self._loop.call_soon_threadsafe(
            self._loop.call_later, self._settings.worker.drain_seconds, lambda: self._let_go(abort=True)
        )

    def _let_go(self, *, abort: bool) -> None:
        for run in self._window.runs():
            self._window.end(run, Ending.LET_GO, abort=abort)

    def stop(self) -> None:
        """End everything, after `drain` and after the last shard has ended."""
        self._draining.set()
        self._poll_now.set()
        self._keeper.close()
        self._writer.close()
        with suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(LAST_WORDS_SECONDS)
        with suppress(Unavailable):
            db.retrying(self._database, lambda connection: fleet.note_stopped(connection, self.worker_id))
        log.info("worker_stopped", worker_id=self.worker_id)

    async def _end(self) -> None:
        try:
            await self._images.close()
        finally:
            await self._engine.stop()

    def _die_soon(self) -> None:
        """The engine is dead: give the shards back while there is time, then end the process."""
        if self._dying.acquire(blocking=False):
            self._draining.set()
            self._let_go(abort=True)
            threading.Thread(target=self._last_words, name="last-words").start()

    def _last_words(self) -> None:
        deadline = time.monotonic() + LAST_WORDS_SECONDS
        while self._held and time.monotonic() < deadline:
            time.sleep(0.05)
        self._die_now()

    def _die_now(self) -> None:
        # A hung or dead engine does not let its threads be joined.
        log.error("worker_dies", worker_id=self.worker_id)
        os._exit(EXIT_ENGINE_DEAD)
