"""The death of a worker whose engine is dead or hangs: its shards are given back while there is time."""

import os
import threading
import time
from collections.abc import Callable, Collection

from jobs import telemetry
from jobs.leases import Held
from workers.window import Ending, ShardRun, Window

log = telemetry.get_logger(__name__)

# sysexits.h EX_SOFTWARE: the engine is gone, a supervisor should start this process again.
EXIT_ENGINE_DEAD = 70
# What a dying worker gives its threads to hand their shards back.
LAST_WORDS_SECONDS = 5.0
# How often it looks whether they have.
HELD_SECONDS = 0.05


def wait_for_last_words(held: Collection[Held]) -> None:
    """Return when nothing is held any more, or the time for it is over."""
    deadline = time.monotonic() + LAST_WORDS_SECONDS
    while held and time.monotonic() < deadline:
        time.sleep(HELD_SECONDS)


class Dying:
    """Ends the process once, with `EXIT_ENGINE_DEAD`, whoever finds first that the engine is dead."""

    def __init__(
        self,
        window: Window,
        held: Collection[Held],
        *,
        worker_id: str,
        draining: threading.Event,
        hand_back: Callable[[ShardRun], None],
        note_failure: Callable[[], None],
    ) -> None:
        self._window, self._held, self._worker_id, self._draining = window, held, worker_id, draining
        self._hand_back, self._note_failure = hand_back, note_failure
        self._dying = threading.Lock()
        self.engine_died = threading.Event()
        """It did, and not since this worker was asked to go: rows that were aboard are suspects."""

    def soon(self) -> None:
        """The engine is dead: give the shards back while there is time, then end the process."""
        if self._dying.acquire(blocking=False):
            # Ctrl-C reaches the engine's processes too: an engine that ends while the worker drains blames nobody.
            if not self._draining.is_set():
                self.engine_died.set()
            self._draining.set()
            self._window.let_go(abort=True)
            try:
                threading.Thread(target=self._last_words, name="last-words").start()
            except RuntimeError:
                # No memory for a thread: the leases end by themselves.
                self._now()

    def _last_words(self) -> None:
        wait_for_last_words(self._held)
        self._now()

    def stalled(self) -> None:
        """The engine hangs, or died while it had nothing to do. Its rows will not end: tell of them as they are."""
        if self._dying.acquire(blocking=False):
            self.engine_died.set()
            self._draining.set()
            reporting = threading.Thread(target=self._report_stalled, name="last-words", daemon=True)
            reporting.start()
            reporting.join(LAST_WORDS_SECONDS)
            self._now()

    def _report_stalled(self) -> None:
        runs = self._window.runs()
        if not any(run.in_engine for run in runs):
            self._note_failure()
        for run in runs:
            run.ending = Ending.LET_GO
            self._hand_back(run)

    def _now(self) -> None:
        # A hung or dead engine does not let its threads be joined.
        log.error("worker_dies", worker_id=self._worker_id)
        os._exit(EXIT_ENGINE_DEAD)
