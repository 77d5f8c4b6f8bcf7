"""Feeds the engine from every shard that this worker runs, so that it never waits for a row.

    Celery thread          event loop                      writer thread
    add(run) ───────────►  rows ─► engine.run ─► outcome ──► COPY, COMMIT
    run.ended.wait()  ◄──  nothing left ◄──────── written ◄──┘

The window does not know where a shard or a batch ends: the first rows of the next one run beside the last rows of
this one. Projects take turns, row by row, and so do the batches of a project that have the same priority; shards of one
batch go one after the other, model by model: an engine may have to swap adapters in between. All its state belongs to
the event loop; other threads enter through `call_soon_threadsafe`.

A row is started only if its shard's mark covers it: Postgres knows that it may be aboard (`jobs.leases.mark`). Marks
are set ahead of the rows (`workers.marker`), as little as does not make the engine wait.
"""

import asyncio
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from enum import StrEnum

import msgspec

from jobs import lines, outcomes, telemetry
from jobs.errors import EngineError, EngineFatal, RequestRejected
from jobs.failpoints import failpoint
from jobs.leases import Lease, Row
from jobs.outcomes import Outcome
from workers import endpoints
from workers.engines.base import Body, Engine
from workers.images.resolver import Resolver

log = telemetry.get_logger(__name__)


class Ending(StrEnum):
    """Why a worker has nothing more to do with a shard."""

    DONE = "done"
    """Every row has an outcome, and all are committed."""
    LET_GO = "let_go"
    """Rows are left: the worker drains, or the batch stops. The lease is still ours to give back."""
    LOST = "lost"
    """The lease is somebody else's by now, or may be."""


@dataclass(eq=False)
class ShardRun:
    """A claimed shard on its way through the engine."""

    lease: Lease
    rows: deque[Row]
    """The rows that were not started yet."""
    lease_deadline: float
    """When this worker must stop using the lease (monotonic seconds). The lease keeper moves it on."""
    start_deadline: float
    """When the batch expires (monotonic seconds): no row is started later."""
    marked_line: int = 0
    """Rows up to this line may be started."""
    started_line: int = 0
    """Rows up to this line were started; 0: none."""
    in_engine: set[asyncio.Task[Outcome]] = field(default_factory=set)
    unwritten: int = 0
    """Outcomes on their way to Postgres."""
    written: int = 0
    """Outcomes that this worker committed."""
    ending: Ending = Ending.DONE
    ended: threading.Event = field(default_factory=threading.Event)
    context: Context = field(default_factory=copy_context)
    """What lines in the log about its rows say besides: that of the thread that runs the shard."""

    @property
    def may_start(self) -> bool:
        """Whether the next row is covered by the mark."""
        return bool(self.rows) and self.rows[0].line_no <= self.marked_line

    @property
    def is_lost(self) -> bool:
        return self.ending is Ending.LOST or time.monotonic() >= self.lease_deadline


class _Request(msgspec.Struct):
    body: Body


_decode = msgspec.json.Decoder(_Request).decode

Sink = Callable[[ShardRun, Outcome, bool], None]
# Tokens of one answer, at most: an engine that says more is wrong, and Postgres could not add them up, so that one such
# answer would keep all that are written with it from being written.
MAX_TOKENS = 2**40
# Marks cover what is started in so many rounds of the marker, so that an engine of any speed finds them set.
ROUNDS = 4


def _is_count(tokens: object) -> bool:
    return type(tokens) is int and 0 <= tokens <= MAX_TOKENS


class Window:
    """At most `size` rows in the engine; no row is started while too many outcomes, or bytes of them, are unwritten."""

    def __init__(  # noqa: PLR0913  each is a thing of its own
        self,
        engine: Engine,
        loop: asyncio.AbstractEventLoop,
        *,
        size: int,
        max_unwritten: int,
        max_unwritten_bytes: int,
        request_timeout_seconds: float,
        max_answer_bytes: int,
        sink: Sink,
        on_fatal: Callable[[], None],
        on_unmarked: Callable[[], None],
        images: Resolver | None = None,
    ) -> None:
        self._engine, self._loop, self._images = engine, loop, images
        self.size, self._max_unwritten, self._timeout = size, max_unwritten, request_timeout_seconds
        self._max_unwritten_bytes, self._max_answer_bytes = max_unwritten_bytes, max_answer_bytes
        self._sink, self._on_fatal, self._on_unmarked = sink, on_fatal, on_unmarked
        self._runs: list[ShardRun] = []
        self._in_flight = 0
        self._unwritten = self._unwritten_bytes = 0
        # Rows started since marks were asked for.
        self._started = 0
        # When each project and each batch had its last turn, counted in rows.
        self._turn = 0
        self._turns: dict[str, int] = {}

    @property
    def _spare(self) -> int:
        """Rows of a batch that are covered beyond what is needed at once."""
        return self.size // 8 + 1

    # From any thread.

    def runs(self) -> Sequence[ShardRun]:
        """Return the shards that are not over."""
        return tuple(self._runs)

    @property
    def unwritten(self) -> int:
        """Outcomes that wait for Postgres."""
        return self._unwritten

    def add(self, run: ShardRun) -> None:
        """Start to feed a shard; `run.ended` is set when there is nothing more to do."""
        self._loop.call_soon_threadsafe(self._add, run)

    def written(self, run: ShardRun, done: Sequence[Outcome]) -> None:
        """Note that outcomes of a shard were committed, or, if the shard was lost before, can never be."""
        self._loop.call_soon_threadsafe(self._written, run, len(done), _size(done))

    def end(self, run: ShardRun, ending: Ending, *, abort: bool) -> None:
        """Start no more rows of a shard. With `abort`, end the running ones too."""
        self._loop.call_soon_threadsafe(self._end, run, ending, abort)

    def let_go(self, *, abort: bool) -> None:
        """Start no more rows of any shard; as `end`."""
        for run in self.runs():
            self.end(run, Ending.LET_GO, abort=abort)

    async def unmarked(self) -> dict[ShardRun, int]:
        """Return how far the marks of shards should reach by now, as lines. Runs on the loop.

        Of each batch a few rows are covered beyond those that find a place at once: an eighth of the window, or what is
        started in the time of some rounds, if that is more.
        """
        waiting = sorted((run for run in self._runs if run.rows), key=self._place)
        batches = {run.lease.batch_id for run in waiting}
        places = max(0, self.size - self._in_flight) // max(1, len(batches))
        ahead = defaultdict[str, int](lambda: places + max(self._spare, ROUNDS * self._started))
        due: dict[ShardRun, int] = {}
        for run in waiting:
            count = min(ahead[run.lease.batch_id], len(run.rows))
            ahead[run.lease.batch_id] -= count
            if count and (line := run.rows[count - 1].line_no) > run.marked_line:
                due[run] = line
        self._started = 0
        return due

    def marked(self, run: ShardRun, line: int) -> None:
        """Note that the mark of a shard reaches `line`."""
        self._loop.call_soon_threadsafe(self._marked, run, line)

    # On the loop.

    def _add(self, run: ShardRun) -> None:
        self._runs.append(run)
        self._close_if_over(run)
        if run.rows:
            self._on_unmarked()
        self._pump()

    def _marked(self, run: ShardRun, line: int) -> None:
        run.marked_line = max(run.marked_line, line)
        self._pump()

    def _pump(self) -> None:
        while self._in_flight < self.size and self._may_be_answered and (run := self._next_run()):
            self._start(run, run.rows.popleft())

    @property
    def _may_be_answered(self) -> bool:
        return self._unwritten < self._max_unwritten and self._unwritten_bytes < self._max_unwritten_bytes

    def _next_run(self) -> ShardRun | None:
        """Return the shard whose row is next: of the project that has waited longest, the batch that comes first.

        One whose mark is late is passed over: it has its turn as soon as the mark is there.
        """
        now = time.monotonic()
        for run in tuple(self._runs):
            if run.rows and now >= min(run.lease_deadline, run.start_deadline):
                self._end(run, Ending.LOST if now >= run.lease_deadline else Ending.LET_GO, abort=run.is_lost)
        waiting = [run for run in self._runs if run.rows]
        chosen = min(waiting, key=self._place, default=None)
        if chosen and not chosen.may_start:
            self._on_unmarked()
            chosen = min((run for run in waiting if run.may_start), key=self._place, default=None)
        if chosen:
            self._turn += 1
            self._turns[chosen.lease.project_id] = self._turns[chosen.lease.batch_id] = self._turn
        return chosen

    def _place(self, run: ShardRun) -> tuple[int, int, int, int, int]:
        """Return what `run` is ordered by. `jobs.claims` orders shards by the same rules."""
        lease = run.lease
        return (
            self._turns.get(lease.project_id, 0),
            -lease.priority,
            self._turns.get(lease.batch_id, 0),
            lease.model_no,
            lease.first_line,
        )

    def _start(self, run: ShardRun, row: Row) -> None:
        run.started_line = row.line_no
        self._started += 1
        if len(run.rows) < self._spare or row.line_no > run.marked_line - self._spare:
            self._on_unmarked()
        # Not the one of whoever made room for this row. A copy, since engines put things of one request there.
        context = run.context.copy()
        task = self._loop.create_task(self._run_row(run, row), context=context)
        run.in_engine.add(task)
        self._in_flight += 1
        task.add_done_callback(lambda finished: self._finished(run, finished), context=context)

    async def _run_row(self, run: ShardRun, row: Row) -> Outcome:
        """Return the row's outcome. Whatever one row does, its neighbours go on; only a dead engine is an error."""
        try:
            async with asyncio.timeout(self._timeout):
                asked = _decode(row.content.removeprefix(lines.BOM)).body
                failpoint("run_row.before_submit")
                body = await endpoints.run(
                    self._engine, run.lease.endpoint, asked, tenant=run.lease.project_id, images=self._images
                )
                failpoint("run_row.after_answer")
            return self._success(row, body)
        except RequestRejected as error:
            status, code, param, message = error.status_code, error.code, error.param, error.message
        except TimeoutError:
            status, code, param = 504, "request_timeout", None
            message = f"The request was ended after {self._timeout:g} seconds."
        except (msgspec.DecodeError, UnicodeDecodeError):
            # Validation skips what it need not understand; a number beyond any float, say, is found here.
            status, code, param, message = 400, "invalid_json", None, "The body cannot be read."
        except (EngineFatal, MemoryError):
            raise
        except Exception as error:  # noqa: BLE001
            log.error("engine_error", line=row.line_no, error=type(error).__name__)
            status, code, param, message = 500, "engine_error", None, "The engine failed on this request."
        return outcomes.failure(row.line_no, row.custom_id, status_code=status, message=message, code=code, param=param)

    def _success(self, row: Row, body: Body) -> Outcome:
        outcome = outcomes.success(row.line_no, row.custom_id, body)
        if not all(_is_count(tokens) for tokens in msgspec.structs.astuple(outcome.tokens)):
            raise EngineError
        if len(outcome.content) > self._max_answer_bytes:
            message = f"The answer is longer than {self._max_answer_bytes:,} bytes."
            raise RequestRejected(message, code="answer_too_large")
        return outcome

    def _finished(self, run: ShardRun, task: asyncio.Task[Outcome]) -> None:
        run.in_engine.discard(task)
        self._in_flight -= 1
        if not task.cancelled() and task.exception() is None:
            run.unwritten += 1
            self._unwritten += 1
            self._unwritten_bytes += len(task.result().content)
            self._sink(run, task.result(), not run.rows and not run.in_engine)
        else:
            self._no_outcome(run, task)
        self._close_if_over(run)
        self._pump()

    def _no_outcome(self, run: ShardRun, task: asyncio.Task[Outcome]) -> None:
        """A row was aborted, or the engine died under it: the shard is not done."""
        if run.ending is Ending.DONE:
            run.ending = Ending.LET_GO
        if task.cancelled():
            return
        log.error("row_without_outcome", error=type(task.exception()).__name__)
        # A process that had no memory for one row may have none for the next; which row took it, suspects show.
        if isinstance(task.exception(), EngineFatal | MemoryError):
            self._on_fatal()

    def _written(self, run: ShardRun, count: int, size: int) -> None:
        run.unwritten -= count
        self._unwritten -= count
        self._unwritten_bytes -= size
        if run.ending is not Ending.LOST:
            run.written += count
        self._close_if_over(run)
        self._pump()

    def _end(self, run: ShardRun, ending: Ending, abort: bool) -> None:  # noqa: FBT001  called by call_soon
        if run not in self._runs:
            return
        if run.rows or run.in_engine or ending is Ending.LOST:
            run.ending = Ending.LOST if run.ending is Ending.LOST else ending
        run.rows.clear()
        if abort:
            for task in run.in_engine:
                task.cancel()
        self._close_if_over(run)

    def _close_if_over(self, run: ShardRun) -> None:
        if run in self._runs and not (run.rows or run.in_engine or run.unwritten):
            self._runs.remove(run)
            self._forget_turns(run.lease)
            run.ended.set()

    def _forget_turns(self, ended: Lease) -> None:
        others = [run.lease for run in self._runs]
        if all(lease.batch_id != ended.batch_id for lease in others):
            self._turns.pop(ended.batch_id, None)
        if all(lease.project_id != ended.project_id for lease in others):
            self._turns.pop(ended.project_id, None)


def _size(done: Sequence[Outcome]) -> int:
    return sum(len(outcome.content) for outcome in done)
