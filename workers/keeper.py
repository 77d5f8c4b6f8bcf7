"""Keeps the leases of a worker alive, as long as its engine makes progress, and learns which batches stop."""

import threading
import time
from collections.abc import Callable
from dataclasses import asdict

from sqlalchemy import Engine as Database

from jobs import db, fleet, leases, telemetry
from jobs.settings import Shards
from workers import worker_metrics
from workers.engines.base import Engine
from workers.window import Ending, ShardRun, Window

log = telemetry.get_logger(__name__)

RETRY_SECONDS = 1.0


class LeaseKeeper(threading.Thread):
    """Beats on a thread and a connection of its own, so that no busy pool or slow write delays it.

    A hung engine gets no heartbeat: its shards become free for others, and the process is ended.
    """

    def __init__(
        self,
        database: Database,
        window: Window,
        engine: Engine,
        *,
        worker_id: str,
        settings: Shards,
        on_stall: Callable[[], None],
        on_beat: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(name="lease-keeper", daemon=True)
        self._database, self._window, self._engine = database, window, engine
        self._worker_id, self._settings = worker_id, settings
        self._on_stall, self._on_beat = on_stall, on_beat
        self._stopping = threading.Event()

    def close(self) -> None:
        self._stopping.set()
        self.join()

    def run(self) -> None:
        pause = self._settings.heartbeat_seconds
        while not self._stopping.wait(pause):
            if not self._engine.healthy():
                log.error("engine_stalled", shards=len(self._window.runs()))
                self._on_stall()
                return
            self._on_beat()
            pause = self._settings.heartbeat_seconds if self._beat() else RETRY_SECONDS

    def _beat(self) -> bool:
        """Renew every lease; return whether Postgres answered."""
        runs = self._window.runs()
        asked_at = time.monotonic()
        try:
            with db.transaction(self._database, point="renew_leases") as connection:
                held = [run.lease.held for run in runs]
                renewals = leases.renew(connection, held, lease_seconds=self._settings.lease_seconds)
        except Exception as error:  # noqa: BLE001  whatever it was, without this thread every lease is lost
            worker_metrics.HEARTBEATS.labels("failed").inc()
            log.warning("heartbeat_failed", shards=len(runs), error=db.reason(error))
            return False
        worker_metrics.HEARTBEATS.labels("taken").inc()
        for run in runs:
            self._apply(run, renewals.get(run.lease.held), asked_at)
        self._note_seen(len(runs))
        return True

    def _note_seen(self, shards: int) -> None:
        """Record that this worker is there, and what it is busy with. Whatever goes wrong, the leases are renewed."""
        try:
            load = {**asdict(self._engine.load()), "shards": shards}
            with db.transaction(self._database, point="note_seen") as connection:
                fleet.note_seen(connection, self._worker_id, load)
        except Exception as error:  # noqa: BLE001  without this thread every lease is lost
            log.warning("note_seen_failed", error=db.reason(error))

    def _apply(self, run: ShardRun, renewal: leases.Renewal | None, asked_at: float) -> None:
        if renewal is None:
            # A shard that has just been finished is not running either; for it this comes too late to matter.
            self._window.end(run, Ending.LOST, abort=True)
        elif renewal.stopping:
            self._window.end(run, Ending.LET_GO, abort=True)
        else:
            run.lease_deadline = asked_at + self._settings.lease_seconds - self._settings.lease_margin_seconds
