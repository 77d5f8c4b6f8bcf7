"""Records ahead of time which rows the engine may have aboard: rows that were not recorded are not started."""

import asyncio
import threading
import time

from sqlalchemy import Engine

from jobs import db, leases, telemetry
from workers.window import Ending, ShardRun, Window

log = telemetry.get_logger(__name__)

# Between two rounds, however fast the engine is: one statement, for all shards that this worker runs.
PAUSE_SECONDS = 0.05
RETRY_SECONDS = 1.0
# How often Postgres is asked about shards whose marks suffice: a cancelled batch goes on no longer than that.
LOOK_SECONDS = 1.0


class Marker(threading.Thread):
    """Moves the marks of leases (`jobs.leases.mark`) on when the window nears them.

    A shard that gets none is ended: its lease is lost, or its batch stops.
    """

    def __init__(self, database: Engine, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(name="marker", daemon=True)
        self._database, self._loop = database, loop
        self._due, self._closing = threading.Event(), threading.Event()
        self._window: Window | None = None
        self._look_at = 0.0

    def feed(self, window: Window) -> None:
        """Start to work for a window."""
        self._window = window
        self.start()

    def wake(self) -> None:
        """Look soon whether marks are to be moved on. Cheap; called by the window, often."""
        if not self._due.is_set():
            self._due.set()

    def close(self) -> None:
        self._closing.set()
        self._due.set()
        self.join()

    def run(self) -> None:
        while not self._closing.is_set():
            self._due.wait(max(0.0, min(LOOK_SECONDS, self._look_at - time.monotonic())))
            self._due.clear()
            self._closing.wait(PAUSE_SECONDS if self._round() else RETRY_SECONDS)

    def _round(self) -> bool:
        """Move on the marks that are due; return whether Postgres answered."""
        try:
            lines = self._lines()
            renewals = self._mark(lines)
        except Exception as error:  # noqa: BLE001  without this thread nothing is started any more
            log.warning("mark_failed", error=db.reason(error))
            self._due.set()
            return False
        for run, line in lines.items():
            self._apply(run, line, renewals.get(run.lease.held))
        return True

    def _lines(self) -> dict[ShardRun, int]:
        """Return how far marks should reach; now and then of all shards under way, to hear which batches stop."""
        assert self._window, "fed before it was started"
        due = asyncio.run_coroutine_threadsafe(self._window.unmarked(), self._loop).result()
        if time.monotonic() < self._look_at:
            return due
        self._look_at = time.monotonic() + LOOK_SECONDS
        return {run: run.marked_line for run in self._window.runs() if run.rows or run.in_engine} | due

    def _apply(self, run: ShardRun, line: int, renewal: leases.Renewal | None) -> None:
        assert self._window, "fed before it was started"
        if renewal is None:
            self._window.end(run, Ending.LOST, abort=True)
        elif renewal.stopping:
            self._window.end(run, Ending.LET_GO, abort=True)
        else:
            self._window.marked(run, line)

    def _mark(self, due: dict[ShardRun, int]) -> dict[leases.Held, leases.Renewal]:
        if not due:
            return {}
        with db.transaction(self._database, point="mark_rows") as connection:
            return leases.mark(connection, {run.lease.held: line for run, line in due.items()})
