"""Batches of a project: create, read, list, cancel."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    bindparam,
    func,
    insert,
    select,
    true,
    update,
)
from sqlalchemy.sql.selectable import LateralFromClause

from jobs import ids, inputs, pages, quotas, sharding, transitions, validation
from jobs.errors import InvalidRequest, NotFound, StateConflict
from jobs.inputs import Input
from jobs.protocol import (
    Batch,
    BatchError,
    BatchErrors,
    InputTokensDetails,
    OutputTokensDetails,
    RequestCounts,
    Usage,
    unix,
)
from jobs.settings import Settings
from jobs.states import TERMINAL, BatchStatus, ShardState
from jobs.tables import batches, lines, requests, shards

# In the metadata of a batch that was made from an error file: the batch whose requests it runs again.
RETRY_OF = "retry_of"
MAX_METADATA_PAIRS = 16
_TIMES = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")


@dataclass(frozen=True)
class NewBatch:
    """What a client asks for. Its parameters have been checked, its input file has not."""

    input_file_id: str
    endpoint: str
    completion_window: str
    window_seconds: int
    metadata: dict[str, str] | None = None
    output_expires_after_seconds: int | None = None
    priority: int = 0
    """Higher ones first, among the batches of the project."""


def create(connection: Connection, project_id: str, new: NewBatch, settings: Settings) -> str:
    """Write a batch, its request index and its shards, and return its id. It is in progress, or has failed validation.

    A missing file and bad lines are not errors of this call: the contract has the batch created, then `failed`.

    Raises:
        QuotaExceeded: the project has as many open batches or requests as it may have.
    """
    given = inputs.lock(connection, project_id, new.input_file_id)
    metadata = _metadata(new, given)
    problems = validation.problems(connection, given.source if given else None, new, settings)
    work = _work(connection, given)
    problems = problems or _beyond_quota(connection, project_id, work, settings)
    batch_id = _insert(connection, project_id, new, given, {"metadata": metadata, "enqueued_tokens": work.tokens})
    if problems or given is None:
        _fail(connection, batch_id, problems)
        return batch_id
    inputs.write_requests(connection, batch_id, given)
    common = {"project_id": project_id, "batch_id": batch_id, "priority": new.priority}
    _write_shards(connection, common, given.source, settings)
    transitions.move(connection, batch_id, BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS)
    return batch_id


def _insert(connection: Connection, project_id: str, new: NewBatch, given: Input | None, more: dict[str, Any]) -> str:
    batch_id = ids.new_batch_id()
    values = {
        "id": batch_id,
        "project_id": project_id,
        "input_file_id": new.input_file_id,
        "source_file_id": given and given.source.id,
        "endpoint": new.endpoint,
        "completion_window": new.completion_window,
        "model": given.source.models[0] if given and len(given.source.models) == 1 else None,
        **more,
        "output_expires_after_seconds": new.output_expires_after_seconds,
        "priority": new.priority,
        "expires_at": func.app_now() + timedelta(seconds=new.window_seconds),
    }
    connection.execute(insert(batches).values(values))
    return batch_id


def _work(connection: Connection, given: Input | None) -> quotas.Work:
    count, size = inputs.size(connection, given) if given else (0, 0)
    return quotas.Work(requests=count, tokens=size // quotas.BYTES_PER_TOKEN)


def _beyond_quota(connection: Connection, project_id: str, work: quotas.Work, settings: Settings) -> list[BatchError]:
    """Count a batch against its project's quotas; return the problem if it has too many tokens."""
    quota = quotas.find(connection, project_id, settings.limits.quotas)
    quotas.admit_batch(connection, project_id, quota, work)
    problem = quotas.token_problem(connection, project_id, quota, work)
    return [problem] if problem else []


def _metadata(new: NewBatch, given: Input | None) -> dict[str, str] | None:
    if given is None or given.retry_of is None:
        return new.metadata
    metadata = {**(new.metadata or {}), RETRY_OF: given.retry_of}
    if len(metadata) > MAX_METADATA_PAIRS:
        message = f"Invalid 'metadata': '{RETRY_OF}' is added, so that {MAX_METADATA_PAIRS - 1} pairs are left."
        raise InvalidRequest(message, param="metadata", code="object_above_max_properties")
    return metadata


def _fail(connection: Connection, batch_id: str, problems: Sequence[BatchError]) -> None:
    errors = [problem.model_dump() for problem in problems]
    connection.execute(update(batches).where(batches.c.id == batch_id).values(errors=errors))
    transitions.move(connection, batch_id, BatchStatus.VALIDATING, BatchStatus.FAILED)


def _write_shards(connection: Connection, common: dict[str, Any], source: Row[Any], settings: Settings) -> None:
    # Looked up one by one, not joined, for the reason that `jobs.inputs` has.
    here = (lines.c.file_id == source.id) & (lines.c.line_no == requests.c.line_no)
    size_of_line = select(func.octet_length(lines.c.content)).where(here).scalar_subquery()
    in_order = select(requests.c.line_no, size_of_line, requests.c.model_no).order_by(requests.c.line_no)
    asked = connection.execute(in_order.where(requests.c.batch_id == common["batch_id"]))
    cuts = sharding.cut(
        ((line_no, size, model_no) for line_no, size, model_no in asked),
        max_requests=settings.shards.max_requests,
        max_bytes=settings.shards.max_bytes,
    )
    rows = [
        {
            **common,
            "model": source.models[piece.model_no],
            "model_no": piece.model_no,
            "id": ids.new_shard_id(),
            "number": number,
            "first_line": piece.first_line,
            "last_line": piece.last_line,
            "total": piece.total,
        }
        for number, piece in enumerate(cuts)
    ]
    connection.execute(insert(shards), rows)


COUNTS = ("total", "completed", "failed")
_TOKENS = ("input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens")


def sums(batch_id: ColumnElement[str], names: Sequence[str]) -> LateralFromClause:
    """Sum columns of the shards of a batch. They are exact: outcomes and the counters of shards commit together."""
    columns = (func.coalesce(func.sum(shards.c[name]), 0).label(name) for name in names)
    return select(*columns).where(shards.c.batch_id == batch_id).lateral("sums")


def _select() -> Select[Any]:
    """Select batches with their counts."""
    counted = sums(batches.c.id, (*COUNTS, *_TOKENS))
    return select(batches, *counted.c).join(counted, true())


def find(connection: Connection, project_id: str, batch_id: str, *, show_partial: bool) -> Batch:
    """Return a batch.

    Raises:
        NotFound: no such batch in this project.
    """
    statement = _select().where(batches.c.project_id == project_id, batches.c.id == batch_id)
    if (row := connection.execute(statement).one_or_none()) is None:
        raise _not_found(batch_id)
    return to_wire(row, show_partial=show_partial)


def _not_found(batch_id: str, param: str | None = None) -> NotFound:
    return NotFound(f"No batch found with id '{batch_id}'.", param=param)


def list_page(
    connection: Connection, project_id: str, *, after: str | None, limit: int, show_partial: bool
) -> tuple[list[Batch], bool]:
    """Return up to `limit` batches, newest first, after the batch `after`, and whether more follow.

    Raises:
        NotFound: `after` names no batch of this project.
    """
    mine = batches.c.project_id == project_id
    mark = pages.place(connection, batches, mine, after, partial(_not_found, param="after")) if after else None
    rows, has_more = pages.read(connection, _select().where(mine), batches, after=mark, limit=limit, newest_first=True)
    return [to_wire(row, show_partial=show_partial) for row in rows], has_more


def cancel(connection: Connection, project_id: str, batch_id: str) -> None:
    """Bring a batch to `cancelling`: nothing of it is claimed any more. Cancelling twice changes nothing.

    Raises:
        NotFound: no such batch in this project.
        StateConflict: it has ended in another way.
    """
    statement = select(batches.c.status).where(batches.c.project_id == project_id, batches.c.id == batch_id)
    status = connection.execute(statement.with_for_update()).scalar_one_or_none()
    if status is None:
        raise _not_found(batch_id)
    if status in (BatchStatus.CANCELLING, BatchStatus.CANCELLED):
        return
    if status in TERMINAL or status == BatchStatus.FINALIZING:
        message = f"Cannot cancel a batch with status '{status}'."
        raise StateConflict(message)
    transitions.move(connection, batch_id, BatchStatus(status), BatchStatus.CANCELLING)
    transitions.stop_queued(connection, batch_id)


def to_wire(row: Row[Any], *, show_partial: bool) -> Batch:
    shown = show_partial or row.status in TERMINAL
    output = ids.result_file_id(row.id, "output") if shown and row.completed else None
    error = ids.result_file_id(row.id, "error") if shown and row.failed else None
    times = {f"{name}_at": unix(getattr(row, f"{name}_at")) for name in _TIMES}
    return Batch(
        id=row.id,
        endpoint=row.endpoint,
        model=row.model,
        errors=BatchErrors(data=[BatchError(**problem) for problem in row.errors]) if row.errors else None,
        input_file_id=row.input_file_id,
        completion_window=row.completion_window,
        status=BatchStatus(row.status),
        output_file_id=output,
        error_file_id=error,
        created_at=unix(row.created_at),
        expires_at=unix(row.expires_at),
        request_counts=RequestCounts(total=row.total, completed=row.completed, failed=row.failed),
        usage=_usage(row),
        metadata=row.metadata,
        **times,
    )


def _usage(row: Row[Any]) -> Usage | None:
    if row.status == BatchStatus.FAILED:
        return None
    return Usage(
        input_tokens=row.input_tokens,
        input_tokens_details=InputTokensDetails(cached_tokens=row.cached_tokens),
        output_tokens=row.output_tokens,
        output_tokens_details=OutputTokensDetails(reasoning_tokens=row.reasoning_tokens),
        total_tokens=row.input_tokens + row.output_tokens,
    )


def shards_without_hint(connection: Connection, batch_id: str) -> list[str]:
    """Return the ids of the batch's shards that Celery has not been told of, in order."""
    statement = select(shards.c.id).where(
        shards.c.batch_id == bindparam("batch_id"), shards.c.state == ShardState.QUEUED, shards.c.hinted_at.is_(None)
    )
    return list(connection.execute(statement.order_by(shards.c.number), {"batch_id": batch_id}).scalars())
