"""The one writer of a worker: outcomes of all its shards, results and counters, go to Postgres in one COMMIT."""

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sqlalchemy import Engine

from jobs import db, leases, telemetry, tracing
from jobs.errors import Unavailable
from jobs.leases import Written
from jobs.outcomes import Outcome
from workers import worker_metrics
from workers.window import ShardRun

log = telemetry.get_logger(__name__)

RETRY_SECONDS = (0.05, 0.2, 0.5, 1.0)
# Of outcomes in one transaction; a longer one is alone. So long a COPY takes a second, far from any time-out.
FLUSH_BYTES = 16_000_000
Item = tuple[ShardRun, Outcome, bool]


class Writer(threading.Thread):
    """Takes outcomes with `put` and reports each as written, or its shard as lost.

    An outcome waits for at most `flush_seconds`, or until `flush_outcomes` or `FLUSH_BYTES` are there, or until its
    shard has no others to come. While Postgres does not take outcomes it tries again, until the lease has ended, or for
    `patience_seconds`: heartbeats may keep a lease whose outcomes are never taken. What is unwritten then is dropped,
    and the rows are run again by the next holder. An error that another try does not mend costs only the shard that
    has it. After both, `trouble` is told, so that no shard is run in vain at full speed.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        flush_outcomes: int,
        flush_seconds: float,
        patience_seconds: float,
        written: Callable[[ShardRun, Sequence[Outcome]], None],
        lost: Callable[[ShardRun], None],
        trouble: Callable[[Exception], None],
    ) -> None:
        super().__init__(name="writer", daemon=True)
        self._engine = engine
        self._flush_outcomes, self._flush_seconds = flush_outcomes, flush_seconds
        self._patience_seconds = patience_seconds
        self._report_written, self._report_lost, self._report_trouble = written, lost, trouble
        self._items: deque[Item] = deque()
        # About: both threads write it, and a flush that comes early does no harm.
        self._bytes = 0
        self._some, self._due = threading.Event(), threading.Event()
        self._closing = False

    def put(self, run: ShardRun, outcome: Outcome, last: bool) -> None:  # noqa: FBT001  the window's sink
        """Queue one outcome. `last`: the shard has no other under way, so do not wait for more."""
        self._items.append((run, outcome, last))
        self._bytes += len(outcome.content)
        # The thread is not woken for each outcome: two threads that pass Python's lock to and fro halve the speed.
        if not self._some.is_set():
            self._some.set()
        if last or len(self._items) >= self._flush_outcomes or self._bytes >= FLUSH_BYTES:
            self._due.set()

    def close(self) -> None:
        """Write what is queued, then end the thread."""
        self._closing = True
        self._some.set()
        self._due.set()
        self.join()

    def run(self) -> None:
        while self._items or not self._closing:
            for items in self._gather():
                self._flush(items)

    def _gather(self) -> Iterator[list[Item]]:
        """Wait until outcomes are due; yield all that are there, as many at a time as one transaction takes."""
        self._some.wait()
        self._due.wait(self._flush_seconds)
        self._some.clear()
        self._due.clear()
        # What is put from here on sets the events again.
        left, self._bytes = len(self._items), 0
        while left:
            portion = self._portion(left)
            left -= len(portion)
            yield portion

    def _portion(self, most: int) -> list[Item]:
        """Take at most `most` of what waits, as many as one transaction takes, and at least one."""
        portion: list[Item] = []
        size = 0
        while len(portion) < min(most, self._flush_outcomes):
            size += len(self._items[0][1].content)
            if portion and size > FLUSH_BYTES:
                break
            portion.append(self._items.popleft())
        return portion

    def _flush(self, items: list[Item]) -> None:
        waiting: dict[ShardRun, list[Outcome]] = defaultdict(list)
        for run, outcome, _ in items:
            waiting[run].append(outcome)
        started = time.monotonic()
        written = self._write(waiting)
        for run, outcomes in waiting.items():
            if run not in written:
                self._report_lost(run)
            self._report_written(run, outcomes)
        # Last: whatever goes wrong with figures, the window knows.
        _note({run: outcomes for run, outcomes in waiting.items() if run in written}, time.monotonic() - started)

    def _write(self, waiting: dict[ShardRun, list[Outcome]], tries: int = 0) -> set[ShardRun]:
        """Return the runs whose outcomes are committed. The others have lost their lease, or are given up."""
        until = time.monotonic() + self._patience_seconds
        while held := {run: outcomes for run, outcomes in waiting.items() if not run.is_lost}:
            try:
                return self._try(held, uncertain=tries > 0)
            except Unavailable as error:
                if time.monotonic() >= until:
                    log.error("write_given_up", **_about(held), error=db.reason(error))
                    self._report_trouble(error)
                    break
                log.warning("write_retried", **_about(held), error=db.reason(error))
                time.sleep(RETRY_SECONDS[min(tries, len(RETRY_SECONDS) - 1)])
                tries += 1
            except Exception as error:
                log.exception("write_failed", **_about(held), error=type(error).__name__)
                self._report_trouble(error)
                return self._write_each(held)
        return set()

    def _write_each(self, refused: dict[ShardRun, list[Outcome]]) -> set[ShardRun]:
        """Write each of several runs by itself, so that only the one at fault is lost; return those that are written.

        A try before may have been committed.
        """
        if len(refused) == 1:
            return set()
        return set[ShardRun]().union(*(self._write({run: outcomes}, tries=1) for run, outcomes in refused.items()))

    def _try(self, held: dict[ShardRun, list[Outcome]], *, uncertain: bool) -> set[ShardRun]:
        groups = [
            Written(run.lease.shard_id, run.lease.token, run.lease.batch_id, outcomes) for run, outcomes in held.items()
        ]
        with worker_metrics.WRITE_SECONDS.time(), db.transaction(self._engine, point="write_results") as connection:
            done = leases.write(connection, groups, uncertain=uncertain)
        return {run for run in held if run.lease.held in done}


def _about(held: dict[ShardRun, list[Outcome]]) -> dict[str, Any]:
    return {"rows": sum(map(len, held.values())), "shard_ids": [run.lease.shard_id for run in held]}


def _note(written: dict[ShardRun, list[Outcome]], seconds: float) -> None:
    worker_metrics.count_written((run.lease.model, outcomes) for run, outcomes in written.items())
    for run, outcomes in written.items():
        tracing.note("commit", run.lease.batch_id, seconds, shard_id=run.lease.shard_id, rows=len(outcomes))
