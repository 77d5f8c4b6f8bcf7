"""A running worker: the engine on its event loop, and the threads around it.

main thread    Celery (or nothing, in tests)
event loop     engine, window
marker         which rows may be aboard -> Postgres, ahead of them
writer         outcomes -> Postgres
lease keeper   heartbeats
poller         shards whose hint got lost
Celery pool    one thread for each shard held, waiting most of its time
"""

import asyncio
import gc
import math
import os
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from sqlalchemy import Connection

from jobs import alive, breakers, claims, db, fleet, ids, leases, suspects, telemetry, tracing
from jobs.claims import BeAlone, Claimant, Claimed
from jobs.errors import ConfigurationError, EngineFatal, Unavailable
from jobs.leases import Lease
from jobs.settings import Settings
from workers import endpoints, engines, revisions, worker_metrics
from workers.ends import end_if_over
from workers.engines.base import PROBES
from workers.images.resolver import READERS, Resolver
from workers.keeper import LeaseKeeper
from workers.marker import Marker
from workers.window import Ending, ShardRun, Window
from workers.worker_metrics import Moment
from workers.writer import Writer

log = telemetry.get_logger(__name__)

# sysexits.h EX_SOFTWARE: the engine is gone, a supervisor should start this process again.
EXIT_ENGINE_DEAD = 70
# What a dying worker gives its threads to hand their shards back.
LAST_WORDS_SECONDS = 5.0
# How often a thread that waits for room looks by itself; the end of a shard wakes it.
ROOM_SECONDS = 0.05
# How often a worker that waits to be alone with a suspect asks for it: it stays reserved for ten times as long.
ASK_AGAIN_SECONDS = 1.0
# How long no hint is heard and nothing claimed after Postgres did not take a claim, or outcomes.
PAUSE_SECONDS = 5.0
# A busy machine lets a thread wait in the middle of a transaction, though not for so long.
LEAST_IDLE_SECONDS = 5.0
# Connections to Postgres: claims go one at a time, writer and marker have one, several shards may end at once.
TALKERS = 11


class Runtime:
    """Everything a worker process does, apart from how it hears of shards."""

    def __init__(self, settings: Settings) -> None:
        self.worker_id = ids.new_worker_id()
        self._settings = settings
        self._engine = engines.make(settings.worker)
        url = settings.database_url.get_secret_value()
        seconds = settings.statement_seconds
        lease = settings.shards.lease_seconds
        # A worker that stands still in the middle of a transaction must not keep others from its shards for long.
        idle = min(db.IDLE_SECONDS, max(LEAST_IDLE_SECONDS, lease / 3))
        self._database = db.make_engine(
            url, connections=TALKERS + READERS, statement_seconds=seconds, idle_seconds=idle
        )
        # A beat that gets no answer is given up while there is time for another.
        self._heartbeats = db.make_engine(
            url, connections=1, statement_seconds=min(seconds, lease / 2), idle_seconds=idle
        )
        self._loop = asyncio.new_event_loop()
        self._slots = threading.Semaphore(settings.worker.max_shards)
        self._draining = threading.Event()
        self._engine_died = threading.Event()
        self._poll_now = threading.Event()
        self._dying = threading.Lock()
        self._claiming = threading.Lock()
        self._freed = threading.Condition()
        # Shards held on a hint, with the id of the hint's task.
        self._hinted: dict[leases.Held, str] = {}
        self._held: set[leases.Held] = set()
        self._is_ready = False
        self._has_run = False
        # A suspect waits for this worker to hold nothing, or is all that it holds.
        self._is_to_be_alone = False
        # Rows of those that the window does not know yet.
        self._coming: dict[leases.Held, int] = {}
        # Postgres did not take the last claim, or outcomes: nothing is claimed before then (monotonic seconds).
        self._paused_until = 0.0

    def start(self) -> None:
        """Load the model and make this worker known. Nothing is claimed before this returns.

        Raises:
            ConfigurationError: the engine cannot be started, or this version is too old.
            EngineFatal: it dies of a request of our own.
            Unavailable: Postgres is away.
        """
        # Before the model is loaded, which may take minutes.
        with db.reading(self._database) as connection:
            fleet.check_version(connection)
        self._wait_for_breaker()
        threading.Thread(target=self._loop.run_forever, name="engine-loop", daemon=True).start()
        self._start_engine()
        # What is loaded by now stays loaded: the collector need not look through it again and again.
        gc.collect()
        gc.freeze()
        self._wire()
        self._writer.start()
        self._marker.feed(self._window)
        self._keeper.start()
        with db.transaction(self._database, point="register_worker") as connection:
            fleet.register(
                connection,
                self.worker_id,
                engine=self._engine.name,
                models=self.models,
                endpoints=endpoints.served(self._engine),
                revision=revisions.of(self._settings.worker),
            )
        self._is_ready = True
        log.info("worker_ready", worker_id=self.worker_id, engine=self._engine.name, models=list(self.models))

    def _wait_for_breaker(self) -> None:
        while seconds := self._seconds_open():
            worker_metrics.BREAKER_WAITS.set(1)
            log.warning("breaker_open", models=self.models, seconds=round(seconds, 1))
            time.sleep(seconds)
        worker_metrics.BREAKER_WAITS.set(0)

    def _seconds_open(self) -> float:
        with db.reading(self._database) as connection:
            return breakers.seconds_open(connection, socket.gethostname(), self.models)

    def _start_engine(self) -> None:
        """Start the engine and have it answer once: one that is broken shows it here, not on somebody's request."""
        try:
            self._on_loop(self._engine.start())
            self._on_loop(self._probe())
        except (ConfigurationError, EngineFatal):
            self._note_failure()
            raise

    def _on_loop(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _probe(self) -> None:
        endpoint = self._engine.endpoints()[0]
        try:
            async with asyncio.timeout(self._settings.worker.stall_seconds):
                await self._engine.run(endpoint, {"model": self.models[0], **PROBES[endpoint]})
        except TimeoutError:
            message = "The engine does not answer."
            raise EngineFatal(message) from None
        except EngineFatal:
            raise
        except Exception as error:  # noqa: BLE001  an answer all the same: some engines cannot be asked like this
            log.warning("probe_refused", error=type(error).__name__)

    def _note_failure(self) -> None:
        with suppress(Unavailable), db.transaction(self._database, point="note_breaker") as connection:
            breakers.note_failure(connection, socket.gethostname(), self.models, self._settings.worker)

    def _wire(self) -> None:
        options = self._settings.worker
        self._images = Resolver(self._settings.images, self._database)
        self._marker = Marker(self._database, self._loop)
        capacity = self._engine.capacity()
        self._window = Window(
            self._engine,
            self._loop,
            size=capacity + min(capacity, options.waiting_requests),
            max_unwritten=options.max_unwritten,
            max_unwritten_bytes=options.max_unwritten_bytes,
            request_timeout_seconds=options.request_timeout_seconds,
            max_answer_bytes=options.max_answer_bytes,
            sink=lambda *item: self._writer.put(*item),  # noqa: PLW0108  the writer is made below
            on_fatal=self._die_soon,
            on_unmarked=self._marker.wake,
            images=self._images,
        )
        self._writer = Writer(
            self._database,
            flush_outcomes=options.flush_outcomes,
            flush_seconds=options.flush_seconds,
            patience_seconds=self._settings.shards.lease_seconds,
            written=self._window.written,
            lost=lambda run: self._window.end(run, Ending.LOST, abort=True),
            trouble=self._pause_claims,
        )
        self._keeper = LeaseKeeper(
            self._heartbeats,
            self._window,
            self._engine,
            worker_id=self.worker_id,
            settings=self._settings.shards,
            on_stall=self._die_stalled,
            on_beat=lambda: alive.note(self._settings.alive_file),
        )

    @property
    def models(self) -> list[str]:
        return list(self._engine.models())

    def moment(self) -> Moment:
        """Return what this worker is busy with. Any thread may ask, also before it is started."""
        known = Moment(self._engine.name, self._engine.load(), held=len(self._held))
        if not self._is_ready:
            return known
        return replace(known, capacity=self._engine.capacity(), unwritten=self._window.unwritten)

    # Hearing of shards.

    def run_shard(self, shard_id: str, task_id: str) -> dict[str, Any]:
        """Run a shard on a hint that named one, to its end. Return what Flower is to show: ids and counts."""
        with self._slots:
            taken = self._take(lambda: self._claim(shard_id))
            if taken is None:
                return {"claimed": False}
            self._hinted[taken[0].held] = task_id
            return self._run_lease(*taken)

    def under_way(self) -> dict[str, ShardRun]:
        """Return the shards that run on a hint, by the id of its task."""
        runs = [run for run in self._window.runs() if not run.ended.is_set()]
        return {task_id: run for run in runs if (task_id := self._hinted.get(run.lease.held))}

    def may_hear(self, hints: int) -> bool:
        """Tell whether another hint may be taken out of Redis, where `hints` are taken and not done with.

        What a hint stands for is not known before the claim, so each counts as a full shard until then. None may while
        Postgres cannot take claims: hints would be used up for nothing.
        """
        if time.monotonic() < self._paused_until:
            return False
        return self._has_room(coming=hints - len(self._hinted))

    def _has_room(self, coming: int = 0) -> bool:
        """Tell whether another shard may be claimed.

        Some are held in any case. More are, as long as they are so small that the engine would soon be idle. Beside a
        suspect, or when one waits, none is.
        """
        if self._is_to_be_alone:
            return not self._held
        if len(self._held) + coming < self._settings.worker.full_shards:
            return True
        waiting = sum(list(self._coming.values())) + sum(len(run.rows) for run in self._window.runs())
        return waiting + coming * self._settings.shards.max_requests < self._window.size

    def _take(self, claim: Callable[[], Claimed]) -> tuple[Lease, float] | None:
        """Claim as soon as there is room, one at a time; return the lease and when it was asked for."""
        with self._claiming:
            self._wait_for_room()
            started, lease = time.monotonic(), self._claim_if_needed(claim)
            while isinstance(lease, BeAlone):
                self._is_to_be_alone = True
                # Another worker may be alone before, and take the suspect.
                self._wait_for_room(ASK_AGAIN_SECONDS)
                started, lease = time.monotonic(), self._claim_if_needed(partial(self._claim, lease.shard_id))
            self._is_to_be_alone = lease is not None and lease.is_suspect
            if lease is None:
                return None
            seconds = time.monotonic() - started
            tracing.note("claim", lease.batch_id, seconds, shard_id=lease.shard_id, worker_id=self.worker_id)
            self._coming[lease.held] = lease.remaining
            self._held.add(lease.held)
            return lease, started

    def _wait_for_room(self, seconds: float = math.inf) -> None:
        until = time.monotonic() + seconds
        with self._freed:
            while not (self._draining.is_set() or self._may_claim() or time.monotonic() >= until):
                self._freed.wait(ROOM_SECONDS)

    def _may_claim(self) -> bool:
        return time.monotonic() >= self._paused_until and self._has_room()

    def _claim_if_needed(self, claim: Callable[[], Claimed]) -> Claimed:
        """Claim, unless the worker drains, or its engine died idle: the first row would be blamed for it."""
        return None if self._draining.is_set() or not self._engine.healthy() else self._try(claim)

    def _try(self, claim: Callable[[], Claimed]) -> Claimed:
        """Claim, and pause claims while Postgres is away or full; whatever was claimed unseen ends with its lease."""
        try:
            lease = claim()
        except Unavailable as error:
            self._pause_claims(error)
            return None
        # Not one that the writer began in the meantime.
        if self._paused_until and time.monotonic() >= self._paused_until:
            worker_metrics.CLAIMS_PAUSED.set(0)
            log.info("claims_resumed")
            self._paused_until = 0.0
        return lease

    def _pause_claims(self, error: Exception) -> None:
        """Claim nothing for a while. Any thread may call this."""
        if not self._paused_until:
            worker_metrics.CLAIM_PAUSES.inc()
            worker_metrics.CLAIMS_PAUSED.set(1)
            log.warning("claims_paused", error=db.reason(error))
        self._paused_until = time.monotonic() + PAUSE_SECONDS

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
            log.warning("worker_too_old", worker_id=self.worker_id, version=fleet.VERSION)
            self.drain()
            # Whoever serves this worker ends it as when it is asked to go.
            os.kill(os.getpid(), signal.SIGTERM)
        return claimed

    @property
    def _claimant(self) -> Claimant:
        seconds = self._settings.shards.lease_seconds
        return Claimant(self.worker_id, self.models, endpoints.served(self._engine), seconds, alone=not self._held)

    def poll(self) -> None:
        """Look into Postgres for shards whose hint got lost, until the worker drains. A thread of its own."""
        with ThreadPoolExecutor(self._settings.worker.max_shards, thread_name_prefix="polled") as pool:
            while not self._draining.is_set():
                try:
                    while self._slots.acquire(blocking=False):
                        if not self._poll_one(pool):
                            break
                except Exception as error:  # noqa: BLE001  the next look may succeed
                    log.warning("poll_failed", error=db.reason(error))
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

    def _claim_next(self) -> Claimed:
        seconds = self._settings.worker.poll_seconds
        return self._claim_if_new_enough(
            lambda connection: claims.claim_unhinted(connection, self._claimant, hint_seconds=seconds),
            point="claim_polled",
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
            with telemetry.about(batch_id=lease.batch_id, shard_id=lease.shard_id):
                return self._run_to_end(lease, started)
        finally:
            if lease.is_suspect:
                # First: once nothing is held, the next suspect may be claimed.
                self._is_to_be_alone = False
            self._held.discard(lease.held)
            self._coming.pop(lease.held, None)
            self._hinted.pop(lease.held, None)
            with self._freed:
                self._freed.notify_all()

    def _run_to_end(self, lease: Lease, started: float) -> dict[str, Any]:
        run = self._load(lease, started)
        worker_metrics.SHARD_STATE_SECONDS.labels("queued").observe(lease.waited_seconds)
        self._close_breaker()
        rows = len(run.rows)
        self._window.add(run)
        # After the window has heard of it.
        self._loop.call_soon_threadsafe(self._coming.pop, lease.held, None)
        if self._draining.is_set():
            self._window.end(run, Ending.LET_GO, abort=False)
        run.ended.wait()
        self._hand_back(run)
        self._note_end(run, rows, time.monotonic() - started)
        ended = {"ending": str(run.ending), "rows": rows, "attempt": lease.token}
        return {"claimed": True, **ended, "batch": lease.batch_id, "shard": lease.shard_id}

    def _note_end(self, run: ShardRun, rows: int, seconds: float) -> None:
        log.info("shard_ended", rows=rows, ending=str(run.ending))
        worker_metrics.SHARD_STATE_SECONDS.labels("running").observe(seconds)
        worker_metrics.SHARDS.labels(run.ending).inc()
        what = {"shard_id": run.lease.shard_id, "worker_id": self.worker_id, "ending": str(run.ending)}
        tracing.note("run_shard", run.lease.batch_id, seconds, rows=rows, **what)

    def _load(self, lease: Lease, started: float) -> ShardRun:
        rows = db.retrying(self._database, lambda connection: leases.load_rows(connection, lease), point="load_rows")
        if len(rows) != lease.remaining:
            log.error("rows_missing", found=len(rows), remaining=lease.remaining)
        shards = self._settings.shards
        return ShardRun(
            lease=lease,
            rows=deque(rows),
            lease_deadline=started + shards.lease_seconds - shards.lease_margin_seconds,
            start_deadline=started + lease.seconds_left,
            marked_line=lease.last_line if lease.is_suspect else 0,
        )

    def _close_breaker(self) -> None:
        """Before the first row: from now on a death is a matter of rows."""
        if self._has_run:
            return
        with suppress(Unavailable), db.transaction(self._database, point="close_breaker") as connection:
            breakers.close(connection, socket.gethostname(), self.models)
            self._has_run = True

    def _hand_back(self, run: ShardRun) -> None:
        """Release what is not done, and end the batch if this was the last of it.

        Also after a lease was lost: it may still be ours by the database's clock, and where it is not, nothing happens.
        """
        lease, retention = run.lease, self._settings.retention
        try:
            if run.ending is not Ending.DONE:
                db.retrying(self._database, lambda connection: self._give_back(connection, run), point="release_shard")
            end_if_over(self._database, lease.batch_id, retention, point="settle_batch")
        except Unavailable as error:
            # The reconciler does both.
            log.warning("not_handed_back", shard_id=lease.shard_id, error=db.reason(error))

    def _give_back(self, connection: Connection, run: ShardRun) -> None:
        """Release the lease of a shard; if the engine died under it, its rows are suspects."""
        lease, most_deaths = run.lease, self._settings.shards.most_deaths
        if not (self._engine_died.is_set() and run.started_line):
            leases.release(connection, *lease.held)
            return
        state = suspects.died(connection, lease.held, run.started_line, most_deaths=most_deaths)
        log.error("engine_died_under", shard_id=lease.shard_id, batch_id=lease.batch_id, state=state)

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
        self._marker.close()
        self._writer.close()
        with suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(LAST_WORDS_SECONDS)
        with suppress(Unavailable):
            db.retrying(
                self._database,
                lambda connection: fleet.note_stopped(connection, self.worker_id),
                point="note_worker_stopped",
            )
        log.info("worker_stopped", worker_id=self.worker_id)

    async def _end(self) -> None:
        try:
            await self._images.close()
        finally:
            await self._engine.stop()

    def _die_soon(self) -> None:
        """The engine is dead: give the shards back while there is time, then end the process."""
        if self._dying.acquire(blocking=False):
            # Ctrl-C reaches the engine's processes too: an engine that ends while the worker drains blames nobody.
            if not self._draining.is_set():
                self._engine_died.set()
            self._draining.set()
            self._let_go(abort=True)
            try:
                threading.Thread(target=self._last_words, name="last-words").start()
            except RuntimeError:
                # No memory for a thread: the leases end by themselves.
                self._die_now()

    def _last_words(self) -> None:
        deadline = time.monotonic() + LAST_WORDS_SECONDS
        while self._held and time.monotonic() < deadline:
            time.sleep(0.05)
        self._die_now()

    def _die_stalled(self) -> None:
        """The engine hangs, or died while it had nothing to do. Its rows will not end: tell of them as they are."""
        if self._dying.acquire(blocking=False):
            self._engine_died.set()
            self._draining.set()
            reporting = threading.Thread(target=self._report_stalled, name="last-words", daemon=True)
            reporting.start()
            reporting.join(LAST_WORDS_SECONDS)
            self._die_now()

    def _report_stalled(self) -> None:
        runs = self._window.runs()
        if not any(run.in_engine for run in runs):
            self._note_failure()
        for run in runs:
            run.ending = Ending.LET_GO
            self._hand_back(run)

    def _die_now(self) -> None:
        # A hung or dead engine does not let its threads be joined.
        log.error("worker_dies", worker_id=self.worker_id)
        os._exit(EXIT_ENGINE_DEAD)
