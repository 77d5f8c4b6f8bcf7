"""The one writer of a worker: outcomes of all its shards, results and counters, go to Postgres in one COMMIT."""

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator

from sqlalchemy import Engine

from jobs import db, leases, telemetry, tracing
from jobs.errors import Unavailable
from jobs.leases import Written
from jobs.outcomes import Outcome
from workers import worker_metrics
from workers.window import ShardRun

log = telemetry.get_logger(__name__)

RETRY_SECONDS = (0.05, 0.2, 0.5, 1.0)
Item = tuple[ShardRun, Outcome, bool]


class Writer(threading.Thread):
    """Takes outcomes with `put` and reports each as written, or its shard as lost.

    An outcome waits for at most `flush_seconds`, or until `flush_outcomes` are there, or until its shard has no others
    to come. While Postgres is away it tries again until the lease has ended; what is unwritten then is dropped, and
    the rows are run again by the next holder.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        flush_outcomes: int,
        flush_seconds: float,
        written: Callable[[ShardRun, int], None],
        lost: Callable[[ShardRun], None],
    ) -> None:
        super().__init__(name="writer", daemon=True)
        self._engine = engine
        self._flush_outcomes, self._flush_seconds = flush_outcomes, flush_seconds
        self._report_written, self._report_lost = written, lost
        self._items: deque[Item] = deque()
        self._some, self._due = threading.Event(), threading.Event()
        self._closing = False

    def put(self, run: ShardRun, outcome: Outcome, last: bool) -> None:  # noqa: FBT001  the window's sink
        """Queue one outcome. `last`: the shard has no other under way, so do not wait for more."""
        self._items.append((run, outcome, last))
        # The thread is not woken for each outcome: two threads that pass Python's lock to and fro halve the speed.
        if not self._some.is_set():
            self._some.set()
        if last or len(self._items) >= self._flush_outcomes:
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
        items = [self._items.popleft() for _ in range(len(self._items))]
        for start in range(0, len(items), self._flush_outcomes):
            yield items[start : start + self._flush_outcomes]

    def _flush(self, items: list[Item]) -> None:
        waiting: dict[ShardRun, list[Outcome]] = defaultdict(list)
        for run, outcome, _ in items:
            waiting[run].append(outcome)
        started = time.monotonic()
        written = self._write(waiting)
        _note({run: outcomes for run, outcomes in waiting.items() if run in written}, time.monotonic() - started)
        for run, outcomes in waiting.items():
            if run not in written:
                self._report_lost(run)
            self._report_written(run, len(outcomes))

    def _write(self, waiting: dict[ShardRun, list[Outcome]]) -> set[ShardRun]:
        """Return the runs whose outcomes are committed. The others have lost their lease."""
        tries = 0
        while held := {run: outcomes for run, outcomes in waiting.items() if not run.is_lost}:
            try:
                return self._try(held, uncertain=tries > 0)
            except Unavailable as error:
                rows, shard_ids = sum(map(len, held.values())), [run.lease.shard_id for run in held]
                log.warning("write_retried", rows=rows, shard_ids=shard_ids, error=db.reason(error))
                time.sleep(RETRY_SECONDS[min(tries, len(RETRY_SECONDS) - 1)])
                tries += 1
            except Exception as error:
                shard_ids = [run.lease.shard_id for run in held]
                log.exception("write_failed", shard_ids=shard_ids, error=type(error).__name__)
                return set()
        return set()

    def _try(self, held: dict[ShardRun, list[Outcome]], *, uncertain: bool) -> set[ShardRun]:
        groups = [
            Written(run.lease.shard_id, run.lease.token, run.lease.batch_id, outcomes) for run, outcomes in held.items()
        ]
        with worker_metrics.WRITE_SECONDS.time(), db.transaction(self._engine, point="write_results") as connection:
            done = leases.write(connection, groups, uncertain=uncertain)
        return {run for run in held if run.lease.held in done}


def _note(written: dict[ShardRun, list[Outcome]], seconds: float) -> None:
    worker_metrics.count_written((run.lease.model, outcomes) for run, outcomes in written.items())
    for run, outcomes in written.items():
        tracing.note("commit", run.lease.batch_id, seconds, shard_id=run.lease.shard_id, rows=len(outcomes))
