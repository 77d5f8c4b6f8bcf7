"""What a template shows of a domain value. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from api.web import plot
from jobs import ids
from jobs.fleet import Sighting
from jobs.progress import Pace
from jobs.protocol import Batch, BatchError
from jobs.states import TERMINAL, BatchStatus

# A worker that missed this much heartbeats is shown as missing. Seconds.
SILENT_SECONDS = 120
KIBI = 1_024


def count(number: int) -> str:
    """Return 12345 as 12,345."""
    return f"{number:,}"


def rate(number: float) -> str:
    """Return a number with as many digits as say something."""
    return f"{number:,.0f}" if number >= 10 else f"{number:.1f}" if number >= 1 else f"{number:.2g}"


def size(length: int) -> str:
    """Return a number of bytes in the unit that people use."""
    number, units = float(length), ["bytes", "KiB", "MiB", "GiB"]
    while number >= KIBI and len(units) > 1:
        number, units = number / KIBI, units[1:]
    return f"{number:,.0f} bytes" if units[0] == "bytes" else f"{number:,.1f} {units[0]}"


def duration(seconds: float) -> str:
    """Return seconds in at most two units."""
    whole = max(0, round(seconds))
    for length, unit, smaller, name in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= length:
            rest = whole % length // smaller
            return f"{whole // length} {unit}" + (f" {rest} {name}" if rest else "")
    return f"{whole} s"


def moment(unix: int) -> str:
    """Return a moment as people read it, UTC."""
    return datetime.fromtimestamp(unix, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def stamp(unix: int) -> str:
    """Return a moment as programs read it."""
    return datetime.fromtimestamp(unix, UTC).isoformat()


def words(text: str) -> str:
    """Return `in_progress` as people write it."""
    return text.replace("_", " ")


@dataclass(frozen=True)
class Bar:
    """How far a batch is, in parts of a hundred."""

    completed: float
    failed: float
    done: int
    total: int


def bar(batch: Batch) -> Bar:
    """Return the bar of a batch. One that has no requests has none done."""
    counts = batch.request_counts
    total, done = max(counts.total, 1), counts.completed + counts.failed
    completed, failed = (round(100 * part / total, 3) for part in (counts.completed, counts.failed))
    return Bar(completed, failed, done, counts.total)


@dataclass(frozen=True)
class Row:
    """A batch in the list."""

    batch: Batch
    bar: Bar


def rows(batches: Sequence[Batch]) -> list[Row]:
    return [Row(batch, bar(batch)) for batch in batches]


@dataclass(frozen=True)
class Run:
    """How a batch runs, or ran."""

    bar: Bar
    rows_rate: float
    tokens_rate: float
    left: str | None
    """How long it still takes if it goes on as lately; None: it does not run, or nothing has ended."""
    took: str | None
    """How long it took, of one that has ended."""
    rows: plot.Chart | None
    tokens: plot.Chart | None
    """None: nothing has ended yet."""


def run(batch: Batch, pace: Pace) -> Run:
    """Return rates, time left and plots of a batch. Of one that has ended the rates are those of its whole run."""
    shown, has_ended, runs = bar(batch), batch.status in TERMINAL, batch.status == BatchStatus.IN_PROGRESS
    seconds = len(pace.rows) * pace.seconds
    rows_rate = sum(pace.rows) / seconds if has_ended else pace.rate(pace.rows)
    tokens_rate = sum(pace.tokens) / seconds if has_ended else pace.rate(pace.tokens)
    has_rows = any(pace.rows)
    return Run(
        bar=shown,
        rows_rate=rows_rate,
        tokens_rate=tokens_rate,
        left=duration((shown.total - shown.done) / rows_rate) if runs and rows_rate else None,
        took=_took(batch),
        rows=plot.chart(pace.rows, pace.seconds) if has_rows else None,
        tokens=plot.chart(pace.tokens, pace.seconds) if has_rows and any(pace.tokens) else None,
    )


def ended_at(batch: Batch) -> int | None:
    return batch.completed_at or batch.failed_at or batch.expired_at or batch.cancelled_at


def _took(batch: Batch) -> str | None:
    end = ended_at(batch)
    return duration(end - batch.in_progress_at) if end and batch.in_progress_at else None


@dataclass(frozen=True)
class Download:
    """A result file, whole or as far as it is written."""

    kind: str
    file_id: str
    lines: int
    is_partial: bool


def downloads(batch: Batch) -> list[Download]:
    """Return the result files that hold anything. They can be read from the start of the run on."""
    counts, is_partial = batch.request_counts, batch.status not in TERMINAL
    held: dict[ids.ResultKind, int] = {"output": counts.completed, "error": counts.failed}
    return [
        Download(kind, ids.result_file_id(batch.id, kind), lines, is_partial) for kind, lines in held.items() if lines
    ]


def may_cancel(batch: Batch) -> bool:
    return batch.status in (BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS)


def may_retry(batch: Batch) -> bool:
    """Tell whether it has ended and left requests to run again."""
    return batch.status in TERMINAL and batch.error_file_id is not None


@dataclass(frozen=True)
class Worker:
    """A worker in the list."""

    seen: Sighting
    state: str
    """`running`, `stopped` or `missing`."""
    kv_percent: int | None


def workers(seen: Sequence[Sighting]) -> list[Worker]:
    return [Worker(each, _state(each), _percent(each.kv_use)) for each in seen]


def _state(seen: Sighting) -> str:
    if seen.is_stopped:
        return "stopped"
    return "running" if seen.seconds_ago < SILENT_SECONDS else "missing"


def _percent(part: float | None) -> int | None:
    return None if part is None else round(100 * min(max(part, 0.0), 1.0))


def by_line(problems: Sequence[BatchError]) -> list[BatchError]:
    """Return problems in the order of their lines; those of the file itself first."""
    return sorted(problems, key=lambda problem: problem.line or 0)
