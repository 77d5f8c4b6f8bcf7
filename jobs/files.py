"""Files of a project: input files as they were sent, output and error files as views over results."""

from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any

from sqlalchemy import Connection, Row, Select, false, func, literal, null, select, true, update

from jobs import idempotency, ids, pages, quotas
from jobs.errors import InvalidRequest, NotFound, StateConflict, Unavailable
from jobs.jsonl import Summary
from jobs.protocol import PURPOSES, File, unix
from jobs.settings import Quotas
from jobs.states import TERMINAL
from jobs.tables import batches, files, results

RESULT_PURPOSE = "batch_output"

VISIBLE = (
    (files.c.status == "processed")
    & files.c.deleted_at.is_(None)
    & (files.c.expires_at.is_(None) | (files.c.expires_at > func.app_now()))
)


@dataclass(frozen=True)
class NewFile:
    """A file whose bytes are all committed, and which nobody can see yet."""

    id: str
    project_id: str
    filename: str
    purpose: str
    size: int
    sha256: bytes
    expires_after_seconds: int | None = None
    summary: Summary = field(default_factory=Summary)


def check_purpose(purpose: str) -> None:
    """Return for a purpose that a client may upload for.

    Raises:
        InvalidRequest: it is another one.
    """
    if purpose not in PURPOSES:
        known = ", ".join(f"'{each}'" for each in PURPOSES)
        message = f"Invalid value: '{purpose}'. Supported values are: {known}."
        raise InvalidRequest(message, param="purpose", code="invalid_value")


def publish(connection: Connection, new: NewFile, defaults: Quotas) -> str:
    """Make an uploaded file visible and return its id. Every upload comes by here, whichever way it came.

    Raises:
        QuotaExceeded: the project has as many files or bytes as it may have.
        Unavailable: the upload took so long that its rows were swept.
    """
    quotas.admit_file(connection, new.project_id, defaults, size=new.size)
    life = new.expires_after_seconds and timedelta(seconds=new.expires_after_seconds)
    statement = (
        update(files)
        .where(files.c.id == new.id, files.c.status == "uploading", files.c.sweep_began_at.is_(None))
        .values(
            status="processed",
            filename=new.filename,
            purpose=new.purpose,
            bytes=new.size,
            sha256=new.sha256,
            requests=new.summary.requests,
            urls=sorted(new.summary.urls),
            models=list(new.summary.models),
            problems=[problem.model_dump() for problem in new.summary.problems] or None,
            created_at=func.app_now(),
            expires_at=func.app_now() + life if life else None,
        )
    )
    if not connection.execute(statement).rowcount:
        message = "The upload took too long and was given up. Please try again."
        raise Unavailable(message)
    return new.id


def _select() -> Select[Any]:
    return select(files, true().label("is_final")).where(VISIBLE)


def to_wire(row: Row[Any]) -> File:
    return File(
        id=row.id,
        bytes=row.bytes,
        created_at=unix(row.created_at),
        expires_at=unix(row.expires_at),
        filename=row.filename,
        purpose=row.purpose,
    )


def find(connection: Connection, project_id: str, file_id: str) -> Row[Any]:
    """Return the row of a file, or of the output or error file of a batch that is still running (`is_final` false).

    Raises:
        NotFound: no such file in this project, or it is deleted, expired or not yet whole.
    """
    statement = _select().where(files.c.project_id == project_id, files.c.id == file_id)
    row = connection.execute(statement).one_or_none() or _unpublished(connection, project_id, file_id)
    if row is None:
        raise _not_found(file_id, param="id")
    return row


def _not_found(file_id: str, param: str) -> NotFound:
    return NotFound(f"No such File object: {file_id}", param=param)


def _unpublished(connection: Connection, project_id: str, file_id: str) -> Row[Any] | None:
    """Describe the output or error file of a batch that has not ended: what is in it so far."""
    if not (named := ids.parse_result_file_id(file_id)):
        return None
    batch_id, kind = named
    size = (
        select(func.coalesce(func.sum(func.octet_length(results.c.content)), 0))
        .where(results.c.batch_id == batch_id, results.c.is_error == (kind == "error"))
        .scalar_subquery()
    )
    statement = select(
        literal(file_id).label("id"),
        size.label("bytes"),
        batches.c.created_at,
        null().label("expires_at"),
        literal(result_filename(batch_id, kind)).label("filename"),
        literal(RESULT_PURPOSE).label("purpose"),
        literal(batch_id).label("batch_id"),
        false().label("is_final"),
    ).where(batches.c.project_id == project_id, batches.c.id == batch_id, batches.c.status.not_in(TERMINAL))
    return connection.execute(statement).one_or_none()


def result_filename(batch_id: str, kind: ids.ResultKind) -> str:
    return f"{batch_id}_{kind}.jsonl"


def list_page(
    connection: Connection, project_id: str, *, purpose: str | None, after: str | None, limit: int, newest_first: bool
) -> tuple[list[File], bool]:
    """Return up to `limit` files after the file `after`, and whether more follow.

    Raises:
        NotFound: `after` names no file of this project.
    """
    mine = files.c.project_id == project_id
    statement = _select().where(mine, *([files.c.purpose == purpose] if purpose else ()))
    mark = pages.place(connection, files, mine, after, partial(_not_found, param="after")) if after else None
    rows, has_more = pages.read(connection, statement, files, after=mark, limit=limit, newest_first=newest_first)
    return [to_wire(row) for row in rows], has_more


def mark_deleted(connection: Connection, project_id: str, file_id: str) -> None:
    """Make a file unknown from now on. A batch that runs keeps reading its lines until it has ended.

    Raises:
        NotFound: no such file in this project.
        StateConflict: it is the output or error file of a batch that is still running.
    """
    if not find(connection, project_id, file_id).is_final:
        message = "The batch that writes this file has not ended."
        raise StateConflict(message)
    idempotency.forget_object(connection, file_id)
    connection.execute(
        update(files).where(files.c.project_id == project_id, files.c.id == file_id).values(deleted_at=func.app_now())
    )
