"""Batches of the endpoint `/v1/messages`, counted and kept as Anthropic's Message Batches are.

They are batches like all others; what differs is that their results are told apart by how they ended, and that a batch
can be deleted: it is gone when its result files are. One that failed its validation has none and is not seen here.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, Subquery, Tuple, case, func, select, true, update

from jobs import idempotency, ids, pages
from jobs.batches import COUNTS, sums
from jobs.content import Source
from jobs.errors import InvalidRequest, NotFound, StateConflict
from jobs.files import VISIBLE
from jobs.outcomes import NEVER_RAN
from jobs.protocol import MESSAGES
from jobs.states import TERMINAL, BatchStatus
from jobs.tables import batches, files, results

# Only these have requests that never ran. Once their error file is swept, all that failed count as such.
CUT_OFF = (BatchStatus.CANCELLED, BatchStatus.EXPIRED)
_KEY = pages.key(batches)


@dataclass(frozen=True)
class Counted:
    """A batch and what became of its requests so far: `total` of them, those without an outcome included."""

    id: str
    status: BatchStatus
    total: int
    completed: int
    failed: int
    never_ran: int
    """Part of `failed`: requests that the end of the batch came before."""
    created_at: datetime
    expires_at: datetime
    ended_at: datetime | None
    cancelling_at: datetime | None
    archived_at: datetime | None
    """When its results became unavailable."""


def find(connection: Connection, project_id: str, batch_id: str) -> Counted:
    """Return a batch.

    Raises:
        NotFound: no such batch in this project, or it was deleted.
    """
    page = _seen(project_id).where(batches.c.id == batch_id)
    if (row := connection.execute(_count(page)).one_or_none()) is None:
        raise not_found(ids.message_batch_id(batch_id))
    return _counted(row)


def not_found(message_batch_id: str) -> NotFound:
    message = f"No message batch found with id '{message_batch_id}'."
    return NotFound(message)


def list_page(
    connection: Connection, project_id: str, *, after: str | None, before: str | None, limit: int
) -> tuple[list[Counted], bool]:
    """Return up to `limit` batches, newest first, and whether more follow in the direction that is asked for.

    Args:
        connection: read from.
        project_id: whose batches.
        after: those that come right after this batch, so older ones.
        before: those that come right before this batch, so newer ones.
        limit: how many.

    Raises:
        NotFound: `after` or `before` names no batch of this project.
        InvalidRequest: both are given.
    """
    if after and before:
        message = "Give 'after_id' or 'before_id', not both."
        raise InvalidRequest(message, param="before_id")
    page = _seen(project_id)
    if after:
        page = page.where(_place(connection, project_id, after) > _KEY)
    if before:
        page = page.where(_place(connection, project_id, before) < _KEY)
    order = (batches.c.created_at, batches.c.id) if before else (batches.c.created_at.desc(), batches.c.id.desc())
    rows = connection.execute(_count(page.order_by(*order).limit(limit + 1))).all()
    # What is one too many lies in the direction that is asked for: at the newest end, going back.
    kept = rows[-limit:] if before else rows[:limit]
    return [_counted(row) for row in kept], len(rows) > limit


def _place(connection: Connection, project_id: str, batch_id: str) -> Tuple:
    chosen = (batches.c.project_id == project_id) & (batches.c.endpoint == MESSAGES)
    return pages.place(connection, batches, chosen, batch_id, lambda each: not_found(ids.message_batch_id(each)))


def _seen(project_id: str) -> Select[Any]:
    """Select the batches that are seen here: those that have not ended, and those with a result file."""
    kept = select(files.c.id).where(_is_result_of(batches.c.id), files.c.deleted_at.is_(None)).exists()
    return select(batches).where(
        batches.c.project_id == project_id,
        batches.c.endpoint == MESSAGES,
        batches.c.status.not_in(TERMINAL) | kept,
    )


def _is_result_of(batch_id: ColumnElement[str]) -> ColumnElement[bool]:
    # By their ids, which have an index; `files.batch_id` has none.
    digits = func.substr(batch_id, len(ids.BATCH_PREFIX) + 1)
    return files.c.id.in_([func.concat("file-", digits, f"-{kind}") for kind in ids.RESULT_KINDS])


def _count(page: Select[Any]) -> Select[Any]:
    """Add the counts to a page of batches. The page is cut first, so that no other batch is counted."""
    batch = page.subquery("page")
    added = [sums(batch.c.id, COUNTS), _errored(batch).lateral("errors"), _archived(batch).lateral("archive")]
    statement = select(batch, *(column for each in added for column in each.c)).select_from(batch)
    for each in added:
        statement = statement.join(each, true())
    return statement.order_by(batch.c.created_at.desc(), batch.c.id.desc())


def _errored(batch: Subquery) -> Select[Any]:
    """Count the requests that failed in the engine; only of batches that may have others, since it reads their rows."""
    return select(func.count().label("errored")).where(
        batch.c.status.in_(CUT_OFF),
        results.c.batch_id == batch.c.id,
        results.c.is_error,
        results.c.code.not_in(list(NEVER_RAN)),
    )


def _archived(batch: Subquery) -> Select[Any]:
    last = func.max(files.c.expires_at)
    of_batch = _is_result_of(batch.c.id) & files.c.deleted_at.is_(None)
    return select(case((last <= func.app_now(), last)).label("archived_at")).where(of_batch)


def _counted(row: Row[Any]) -> Counted:
    return Counted(
        id=row.id,
        status=BatchStatus(row.status),
        total=row.total,
        completed=row.completed,
        failed=row.failed,
        never_ran=row.failed - row.errored if row.status in CUT_OFF else 0,
        created_at=row.created_at,
        expires_at=row.expires_at,
        ended_at=row.completed_at or row.cancelled_at or row.expired_at,
        cancelling_at=row.cancelling_at,
        archived_at=row.archived_at,
    )


@dataclass(frozen=True)
class Results:
    """Where the results of a batch are, and how many there are."""

    sources: list[Source]
    lines: int


def results_of(connection: Connection, project_id: str, batch_id: str) -> Results:
    """Return where the results of a batch are.

    Raises:
        NotFound: no such batch in this project, or its results are not there yet, or not any more.
    """
    batch = find(connection, project_id, batch_id)
    if batch.ended_at is None:
        message = "The results are not available: the batch has not ended."
        raise NotFound(message)
    statement = select(files.c.id, files.c.batch_id, files.c.requests).where(
        files.c.id.in_([ids.result_file_id(batch_id, kind) for kind in ids.RESULT_KINDS]), VISIBLE
    )
    rows = connection.execute(statement.order_by(files.c.id.desc())).all()
    if not rows:
        message = "The results are not available any more: they have expired."
        raise NotFound(message)
    sources = [Source.of(row, project_id) for row in rows]
    return Results(sources, sum(row.requests for row in rows))


def delete(connection: Connection, project_id: str, batch_id: str) -> None:
    """Delete a batch that has ended: its result files, and its input file unless another batch was made from it.

    Raises:
        NotFound: no such batch in this project.
        StateConflict: it has not ended.
    """
    if find(connection, project_id, batch_id).ended_at is None:
        message = "Only a batch that has ended can be deleted. Cancel it first."
        raise StateConflict(message)
    idempotency.forget_object(connection, batch_id)
    others = batches.alias()
    reads_it = select(batches.c.id).where(batches.c.id == batch_id, batches.c.source_file_id == files.c.id).exists()
    is_shared = select(others.c.id).where(others.c.id != batch_id, others.c.source_file_id == files.c.id).exists()
    results_too = files.c.id.in_([ids.result_file_id(batch_id, kind) for kind in ids.RESULT_KINDS])
    # Expired ones too, which `files.mark_deleted` does not know any more.
    statement = (
        update(files)
        .where(files.c.project_id == project_id, files.c.deleted_at.is_(None), results_too | (reads_it & ~is_shared))
        .values(deleted_at=func.app_now())
        .returning(files.c.id)
    )
    for file_id in connection.execute(statement).scalars().all():
        idempotency.forget_object(connection, file_id)
