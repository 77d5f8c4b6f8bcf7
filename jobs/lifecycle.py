"""Brings batches to their end.

Everything here is idempotent: workers call `settle` when a shard ends, and the reconciler calls all of it again.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import Connection, func, select, text
from sqlalchemy.dialects.postgresql import insert

from jobs import ids, transitions
from jobs.files import RESULT_PURPOSE, result_filename
from jobs.outcomes import NEVER_RAN, NeverRan
from jobs.settings import Retention
from jobs.states import BatchStatus
from jobs.tables import batches, files

_LOCK_BATCH = text(
    """
    SELECT b.status, b.expires_at <= app_now() AS is_over
    FROM batches b
    WHERE b.id = :batch_id AND b.status IN ('in_progress', 'cancelling')
      AND (b.status = 'cancelling' OR b.expires_at <= app_now()
           OR NOT EXISTS (SELECT FROM shards s WHERE s.batch_id = b.id AND s.state IN ('queued', 'running')))
    FOR UPDATE
    """
)
_OPEN_SHARDS = text(
    """
    SELECT count(*) FILTER (WHERE state IN ('queued', 'running')) AS unsettled,
           count(*) FILTER (WHERE state = 'stopped') AS stopped
    FROM shards WHERE batch_id = :batch_id
    """
)


def settle(connection: Connection, batch_id: str, retention: Retention) -> BatchStatus | None:
    """End the batch if nothing of it can run any more; return its new status, or None if it goes on.

    Afterwards every request of it has exactly one outcome, and its result files are published.
    """
    batch = connection.execute(_LOCK_BATCH, {"batch_id": batch_id}).one_or_none()
    if batch is None:
        return None
    if batch.is_over or batch.status == BatchStatus.CANCELLING:
        # Also a shard that was released in the very moment of the cancellation.
        transitions.stop_queued(connection, batch_id)
    open_shards = connection.execute(_OPEN_SHARDS, {"batch_id": batch_id}).one()
    if open_shards.unsettled:
        return None
    status = BatchStatus(batch.status)
    if status == BatchStatus.CANCELLING:
        return _end_unfinished(connection, batch_id, status, BatchStatus.CANCELLED, "batch_cancelled", retention)
    if open_shards.stopped:
        return _end_unfinished(connection, batch_id, status, BatchStatus.EXPIRED, "batch_expired", retention)
    return _complete(connection, batch_id, retention)


def _complete(connection: Connection, batch_id: str, retention: Retention) -> BatchStatus:
    # Both steps in one transaction: the result files are views, there is nothing to wait for in between.
    transitions.move(connection, batch_id, BatchStatus.IN_PROGRESS, BatchStatus.FINALIZING)
    publish_result_files(connection, batch_id, retention)
    transitions.move(connection, batch_id, BatchStatus.FINALIZING, BatchStatus.COMPLETED)
    return BatchStatus.COMPLETED


def _end_unfinished(
    connection: Connection, batch_id: str, before: BatchStatus, after: BatchStatus, code: NeverRan, retention: Retention
) -> BatchStatus:
    _write_never_ran(connection, batch_id, code)
    publish_result_files(connection, batch_id, retention)
    transitions.move(connection, batch_id, before, after)
    return after


# No anti-join with `results`: going by the statistics of a table that was small a moment ago, Postgres scans it once
# for each request, and a batch of 50,000 does not end within the time of a statement.
_NEVER_RAN = text(
    """
    WITH stopped AS (
        SELECT id, model_no, first_line, last_line, lease_token
        FROM shards WHERE batch_id = :batch_id AND state = 'stopped'
    ), missing AS (
        INSERT INTO results (batch_id, line_no, is_error, code, lease_token, content)
        SELECT r.batch_id, r.line_no, true, :code, s.lease_token,
               convert_to(json_build_object(
                   'id', 'batch_req_' || replace(gen_random_uuid()::text, '-', ''),
                   'custom_id', r.custom_id,
                   'response', NULL,
                   'error', json_build_object('code', CAST(:code AS text), 'message', CAST(:message AS text))
               )::text || E'\\n', 'UTF8')
        FROM stopped s
        JOIN requests r ON r.batch_id = :batch_id AND r.line_no BETWEEN s.first_line AND s.last_line
                       AND r.model_no = s.model_no
        ON CONFLICT (batch_id, line_no) DO NOTHING
    )
    UPDATE shards SET failed = total - completed, state = 'done' FROM stopped WHERE shards.id = stopped.id
    """
)


def _write_never_ran(connection: Connection, batch_id: str, code: NeverRan) -> None:
    """Give every request of the batch's stopped shards that has no outcome the outcome `code`."""
    connection.execute(_NEVER_RAN, {"batch_id": batch_id, "code": code, "message": NEVER_RAN[code]})


_SIZES = text(
    """
    SELECT is_error, count(*) AS requests, sum(octet_length(content)) AS bytes
    FROM results WHERE batch_id = :batch_id GROUP BY is_error
    """
)


def publish_result_files(connection: Connection, batch_id: str, retention: Retention) -> None:
    """Make the output and the error file objects of their own; a file without lines is not made."""
    statement = select(batches.c.project_id, batches.c.output_expires_after_seconds).where(batches.c.id == batch_id)
    project_id, asked = connection.execute(statement).one()
    life = timedelta(seconds=asked or retention.result_file_seconds)
    # One look at the results for both files: of a million rows it takes seconds.
    found = {row.is_error: row for row in connection.execute(_SIZES, {"batch_id": batch_id})}
    for kind in ids.RESULT_KINDS:
        if (sizes := found.get(kind == "error")) is None:
            continue
        values = {
            "id": ids.result_file_id(batch_id, kind),
            "project_id": project_id,
            "purpose": RESULT_PURPOSE,
            "filename": result_filename(batch_id, kind),
            "status": "processed",
            "bytes": sizes.bytes,
            "requests": sizes.requests,
            "batch_id": batch_id,
            "expires_at": func.app_now() + life,
        }
        connection.execute(insert(files).values(values).on_conflict_do_nothing())


@dataclass(frozen=True)
class Ended:
    """How a batch ended, and how long it was in each state that it was in, seconds."""

    status: BatchStatus
    state_seconds: Mapping[str, float]


def end(connection: Connection, batch_id: str, retention: Retention) -> Ended | None:
    """`settle`, and tell of the batch's life if this ended it."""
    status = settle(connection, batch_id, retention)
    return Ended(status, _state_seconds(connection, batch_id)) if status else None


_STATE_SECONDS = text(
    """
    SELECT extract(epoch FROM in_progress_at - created_at)::float AS validating,
           extract(epoch FROM coalesce(finalizing_at, expired_at, cancelling_at) - in_progress_at)::float
               AS in_progress,
           extract(epoch FROM completed_at - finalizing_at)::float AS finalizing,
           extract(epoch FROM cancelled_at - cancelling_at)::float AS cancelling
    FROM batches WHERE id = :batch_id
    """
)


def _state_seconds(connection: Connection, batch_id: str) -> dict[str, float]:
    row = connection.execute(_STATE_SECONDS, {"batch_id": batch_id}).one()
    return {state: seconds for state, seconds in row._mapping.items() if seconds is not None}  # noqa: SLF001


_TO_SETTLE = text(
    """
    SELECT b.id FROM batches b
    WHERE b.status IN ('in_progress', 'cancelling')
      AND (b.status = 'cancelling' OR b.expires_at <= app_now()
           OR NOT EXISTS (SELECT FROM shards s WHERE s.batch_id = b.id AND s.state IN ('queued', 'running')))
    """
)


def to_settle(connection: Connection) -> list[str]:
    """Return the batches that may be ended: expired ones, and those of which nothing is queued or running."""
    return list(connection.execute(_TO_SETTLE).scalars())
