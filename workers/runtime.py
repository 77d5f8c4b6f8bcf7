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
import os
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection

from jobs import alive, breakers, db, fleet, ids, leases, suspects, telemetry, tracing
from jobs.errors import ConfigurationError, EngineFatal, Unavailable
from jobs.leases import Lease
from jobs.settings import Settings
from workers import endpoints, engines, revisions, worker_metrics
from workers.claiming import Claiming
from workers.dying import LAST_WORDS_SECONDS, Dying, wait_for_last_words
from workers.ends import end_if_over
from workers.engines.base import PROBES
from workers.images.resolver import READERS, Resolver
from workers.keeper import LeaseKeeper
from workers.marker import Marker
from workers.window import Ending, ShardRun, Window
from workers.worker_metrics import Moment
from workers.writer import Writer

log = telemetry.get_logger(__name__)

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
        self._poll_now = threading.Event()
        # Shards held on a hint, with the id of the hint's task.
        self._hinted: dict[leases.Held, str] = {}
        self._is_ready = False
        self._has_run = False

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
            on_fatal=lambda: self._dying.soon(),  # noqa: PLW0108  made below, as the writer is
            on_unmarked=self._marker.wake,
            images=self._images,
        )
        self._claiming = Claiming(
            self._settings,
            self._database,
            self._engine,
            self._window,
            worker_id=self.worker_id,
            draining=self._draining,
            on_too_old=self._leave,
        )
        self._dying = Dying(
            self._window,
            self._claiming.held,
            worker_id=self.worker_id,
            draining=self._draining,
            hand_back=self._hand_back,
            note_failure=self._note_failure,
        )
        self._writer = Writer(
            self._database,
            flush_outcomes=options.flush_outcomes,
            flush_seconds=options.flush_seconds,
            patience_seconds=self._settings.shards.lease_seconds,
            written=self._window.written,
            lost=lambda run: self._window.end(run, Ending.LOST, abort=True),
            trouble=self._claiming.pause,
        )
        self._keeper = LeaseKeeper(
            self._heartbeats,
            self._window,
            self._engine,
            worker_id=self.worker_id,
            settings=self._settings.shards,
            on_stall=self._dying.stalled,
            on_beat=lambda: alive.note(self._settings.alive_file),
        )

    @property
    def models(self) -> list[str]:
        return list(self._engine.models())

    def moment(self) -> Moment:
        """Return what this worker is busy with. Any thread may ask, also before it is started."""
        known = Moment(self._engine.name, self._engine.load(), held=0)
        if not self._is_ready:
            return known
        held, unwritten = len(self._claiming.held), self._window.unwritten
        return replace(known, held=held, capacity=self._engine.capacity(), unwritten=unwritten)

    # Hearing of shards.

    def run_shard(self, shard_id: str, task_id: str) -> dict[str, Any]:
        """Run a shard on a hint that named one, to its end. Return what Flower is to show: ids and counts."""
        with self._slots:
            taken = self._claiming.take_hinted(shard_id)
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

        What a hint stands for is not known before the claim, so each counts as a full shard until then.
        """
        return self._claiming.may_take(coming=hints - len(self._hinted))

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
                self._poll_now.wait(self._claiming.look_seconds)
                self._poll_now.clear()

    def _poll_one(self, pool: ThreadPoolExecutor) -> bool:
        """Claim the next shard and run it on `pool`; the caller's slot goes with it, or is given back."""
        try:
            taken = self._claiming.take_next()
        except BaseException:
            self._slots.release()
            raise
        if taken is None:
            self._slots.release()
            return False
        pool.submit(self._run_polled, *taken)
        return True

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
            self._hinted.pop(lease.held, None)
            self._claiming.free(lease)

    def _run_to_end(self, lease: Lease, started: float) -> dict[str, Any]:
        run = self._load(lease, started)
        worker_metrics.SHARD_STATE_SECONDS.labels("queued").observe(lease.waited_seconds)
        self._close_breaker()
        rows = len(run.rows)
        self._window.add(run)
        # After the window has heard of it.
        self._loop.call_soon_threadsafe(self._claiming.seen_by_window, lease)
        self._loop.call_soon_threadsafe(self._let_go_if_late, run)
        run.ended.wait()
        self._hand_back(run)
        self._note_end(run, rows, time.monotonic() - started)
        ended = {"ending": str(run.ending), "rows": rows, "attempt": lease.token}
        return {"claimed": True, **ended, "batch": lease.batch_id, "shard": lease.shard_id}

    def _let_go_if_late(self, run: ShardRun) -> None:
        """Let go of a shard that was loaded while the drain began: nothing of it has run for long."""
        if self._draining.is_set():
            self._window.end(run, Ending.LET_GO, abort=True)

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
        if not (self._dying.engine_died.is_set() and run.started_line):
            leases.release(connection, *lease.held)
            return
        state = suspects.died(connection, lease.held, run.started_line, most_deaths=most_deaths)
        log.error("engine_died_under", shard_id=lease.shard_id, batch_id=lease.batch_id, state=state)

    # Ending.

    def drain(self) -> None:
        """Start nothing more. Rows that run may finish within `worker.drain_seconds`; the rest is given back.

        Signal handlers may call this, also one in the middle of another: no lock is waited for that the thread which
        they interrupt may hold.
        """
        self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        if self._draining.is_set():
            return
        log.info("worker_draining", shards=len(self._window.runs()))
        self._draining.set()
        self._poll_now.set()
        self._window.let_go(abort=False)
        self._loop.call_later(self._settings.worker.drain_seconds, lambda: self._window.let_go(abort=True))

    def _leave(self) -> None:
        self.drain()
        # Whoever serves this worker ends it as when it is asked to go.
        os.kill(os.getpid(), signal.SIGTERM)

    def stop(self) -> None:
        """End everything, after `drain`. Shards that are still held are given back while there is time."""
        self._draining.set()
        self._poll_now.set()
        self._window.let_go(abort=True)
        wait_for_last_words(self._claiming.held)
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
