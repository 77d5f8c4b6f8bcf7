"""States of batches and shards, and the transitions that are legal. Pure.

    batch   validating -> in_progress -> finalizing -> completed
            validating -> failed
            in_progress -> expired
            validating | in_progress -> cancelling -> cancelled

    shard   queued -> running -> done            every request of it has an outcome
            running -> queued                    the lease ended, or the worker let go
            queued | running -> stopped -> done  its batch was cancelled or expired

Migration 0001 puts the same table into a trigger, so that no code path can leave it
(`tests/integration/test_migrations.py` compares the two).
Wire names: openai-python `types/batch.py`.
"""

from enum import StrEnum


class BatchStatus(StrEnum):
    """What a batch is at; the value is the wire name."""

    VALIDATING = "validating"
    """Written, its input not yet checked."""
    FAILED = "failed"
    """Its input is not valid; nothing ran. Terminal."""
    IN_PROGRESS = "in_progress"
    """Its shards are queued or running."""
    FINALIZING = "finalizing"
    """Every request has an outcome; the result files are being published."""
    COMPLETED = "completed"
    """Every request has an outcome, even if every one of them failed. Terminal."""
    EXPIRED = "expired"
    """`expires_at` passed first; the rest failed with `batch_expired`. Terminal."""
    CANCELLING = "cancelling"
    """No new request starts; running ones are being ended."""
    CANCELLED = "cancelled"
    """Cancelled; what had finished is kept, the rest failed with `batch_cancelled`. Terminal."""


class ShardState(StrEnum):
    """What a shard is at. The lease holder or the reconciler moves it on."""

    QUEUED = "queued"
    """Any worker that serves its model may claim it."""
    RUNNING = "running"
    """Held by one worker until `lease_until`."""
    STOPPED = "stopped"
    """Not to be run any more; its missing outcomes are written when its batch is settled."""
    DONE = "done"
    """Every request of it has exactly one outcome. Terminal."""


BATCH_TRANSITIONS: dict[BatchStatus, frozenset[BatchStatus]] = {
    BatchStatus.VALIDATING: frozenset({BatchStatus.IN_PROGRESS, BatchStatus.FAILED, BatchStatus.CANCELLING}),
    BatchStatus.IN_PROGRESS: frozenset({BatchStatus.FINALIZING, BatchStatus.EXPIRED, BatchStatus.CANCELLING}),
    BatchStatus.FINALIZING: frozenset({BatchStatus.COMPLETED}),
    BatchStatus.CANCELLING: frozenset({BatchStatus.CANCELLED}),
    BatchStatus.FAILED: frozenset(),
    BatchStatus.COMPLETED: frozenset(),
    BatchStatus.EXPIRED: frozenset(),
    BatchStatus.CANCELLED: frozenset(),
}

SHARD_TRANSITIONS: dict[ShardState, frozenset[ShardState]] = {
    ShardState.QUEUED: frozenset({ShardState.RUNNING, ShardState.STOPPED}),
    ShardState.RUNNING: frozenset({ShardState.QUEUED, ShardState.RUNNING, ShardState.DONE, ShardState.STOPPED}),
    ShardState.STOPPED: frozenset({ShardState.DONE}),
    ShardState.DONE: frozenset(),
}

TERMINAL = frozenset(status for status, following in BATCH_TRANSITIONS.items() if not following)


def is_legal(before: BatchStatus, after: BatchStatus) -> bool:
    """Tell whether a batch may go from `before` to `after`."""
    return after in BATCH_TRANSITIONS[before]
