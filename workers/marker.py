"""Records ahead of time which rows the engine may have aboard: rows that were not recorded are not started."""

import asyncio
import threading

from sqlalchemy import Engine

from jobs import db, leases, telemetry
from workers.window import Ending, ShardRun, Window

log = telemetry.get_logger(__name__)

# Between two rounds, however fast the engine is: one statement, for all shards that this worker runs.
PAUSE_SECONDS = 0.05
RETRY_SECONDS = 1.0


class Marker(threading.Thread):
    """Moves the marks of leases (`jobs.leases.mark`) on when the window nears them. A lease without one is lost."""

    def __init__(self, database: Engine, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(name="marker", daemon=True)
        self._database, self._loop = database, loop
        self._due, self._closing = threading.Event(), threading.Event()
        self._window: Window | None = None

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
            self._due.wait()
            self._due.clear()
            self._closing.wait(PAUSE_SECONDS if self._round() else RETRY_SECONDS)

    def _round(self) -> bool:
        """Move on the marks that are due; return whether Postgres answered."""
        assert self._window, "fed before it was started"
        due = asyncio.run_coroutine_threadsafe(self._window.unmarked(), self._loop).result()
        try:
            live = self._mark(due)
        except Exception as error:  # noqa: BLE001  without this thread nothing is started any more
            log.warning("mark_failed", shards=len(due), error=type(error).__name__)
            self._due.set()
            return False
        for run, line in due.items():
            if run.lease.held in live:
                self._window.marked(run, line)
            else:
                self._window.end(run, Ending.LOST, abort=True)
        return True

    def _mark(self, due: dict[ShardRun, int]) -> set[leases.Held]:
        if not due:
            return set()
        with db.transaction(self._database, point="mark_rows") as connection:
            return leases.mark(connection, {run.lease.held: line for run, line in due.items()})
