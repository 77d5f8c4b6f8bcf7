"""Figures of a worker: what it claimed, ran and wrote, and what its engine is busy with.

What is counted row by row is counted once for each COMMIT. Codes of rows are literals of our source, so they are few.
"""

from collections import Counter as Sums
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from prometheus_client import Counter, Gauge, Histogram

from jobs.metrics import LONG_SECONDS, REGISTRY, SHORT_SECONDS, Family, Figure
from jobs.outcomes import Outcome
from workers.engines.base import Load

ROWS = Counter(
    "promptmill_rows_total",
    "Rows whose outcome this worker committed; `code` is that of a failed one.",
    ["model", "outcome", "code"],
    registry=REGISTRY,
)
TOKENS = Counter(
    "promptmill_tokens_total",
    "Tokens of these rows: `input`, of which `cached`, and `output`, of which `reasoning`.",
    ["model", "kind"],
    registry=REGISTRY,
)
WRITE_SECONDS = Histogram(
    "promptmill_write_seconds", "Transactions that write outcomes.", buckets=SHORT_SECONDS, registry=REGISTRY
)
SHARDS = Counter(
    "promptmill_shards_total", "Shards that this worker had, by how that ended.", ["ending"], registry=REGISTRY
)
SHARD_STATE_SECONDS = Histogram(
    "promptmill_shard_state_seconds",
    "How long shards were `queued` before this worker claimed them, and `running` here.",
    ["state"],
    buckets=LONG_SECONDS,
    registry=REGISTRY,
)
HEARTBEATS = Counter(
    "promptmill_heartbeats_total", "Heartbeats, `taken` by Postgres or `failed`.", ["result"], registry=REGISTRY
)
CLAIM_PAUSES = Counter(
    "promptmill_claim_pauses_total",
    "Times that claims were paused since Postgres did not take one, or outcomes.",
    registry=REGISTRY,
)
CLAIMS_PAUSED = Gauge("promptmill_claims_paused", "1: they are paused now.", registry=REGISTRY)
BREAKER_WAITS = Gauge(
    "promptmill_breaker_waits", "1: the engine is not started yet, since it failed too often here.", registry=REGISTRY
)

_READY = Figure("promptmill_worker_ready", "1: the engine is loaded, and shards are claimed.", ("engine",))
_RUNNING = Figure("promptmill_engine_running", "Requests that the engine computes.", ("engine",))
_WAITING = Figure("promptmill_engine_waiting", "Requests that it has, and that wait for a place.", ("engine",))
_CAPACITY = Figure("promptmill_engine_capacity", "Requests that it can compute at once.", ("engine",))
_KV_USE = Figure("promptmill_engine_kv_use_ratio", "Part of its KV cache in use, of vLLM only.", ("engine",))
_PREEMPTED = Figure(
    "promptmill_engine_preempted_total",
    "Requests that lost their place in the KV cache and were begun again.",
    ("engine",),
    kind="counter",
)
_HELD = Figure("promptmill_held_shards", "Shards that this worker holds.")
_UNWRITTEN = Figure("promptmill_unwritten_rows", "Outcomes that wait for Postgres.")
FIGURES = (_READY, _RUNNING, _WAITING, _CAPACITY, _KV_USE, _PREEMPTED, _HELD, _UNWRITTEN)


@dataclass(frozen=True)
class Moment:
    """What a worker is busy with at a moment."""

    engine: str
    load: Load
    held: int
    capacity: int | None = None
    """None: the engine is not loaded yet."""
    unwritten: int = 0


def families(moment: Moment) -> Iterator[Family]:
    """Yield what a worker is busy with as figures."""
    engine, load = (moment.engine,), moment.load
    yield _READY.family([(engine, moment.capacity is not None)])
    yield _RUNNING.family([(engine, load.running)])
    yield _WAITING.family([(engine, load.waiting)])
    yield _CAPACITY.family([(engine, moment.capacity or 0)])
    yield _KV_USE.family([] if load.kv_use is None else [(engine, load.kv_use)])
    yield _PREEMPTED.family([(engine, load.preempted)])
    yield _HELD.family([((), moment.held)])
    yield _UNWRITTEN.family([((), moment.unwritten)])


def count_written(written: Iterable[tuple[str, Sequence[Outcome]]]) -> None:
    """Count the outcomes of one COMMIT, each sequence with its model."""
    for model, outcomes in written:
        for (is_error, code), count in Sums((each.is_error, each.code) for each in outcomes).items():
            ROWS.labels(model, "failed" if is_error else "completed", code or "").inc(count)
        used = [each.tokens for each in outcomes]
        TOKENS.labels(model, "input").inc(sum(each.input for each in used))
        TOKENS.labels(model, "cached").inc(sum(each.cached for each in used))
        TOKENS.labels(model, "output").inc(sum(each.output for each in used))
        TOKENS.labels(model, "reasoning").inc(sum(each.reasoning for each in used))
