"""What a batch is made from: an uploaded file, or the error file of a batch that has ended.

An error file stands for the requests that failed, expired or were cancelled: they are run again, with the bodies that
their own file has.
"""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, select, text

from jobs import ids
from jobs.files import VISIBLE
from jobs.tables import batches, files


@dataclass(frozen=True)
class Input:
    """Where the bodies are, and which of them are to be run."""

    source: Row[Any]
    """The file itself, or the one that the batch of an error file read."""
    retry_of: str | None = None
    """The batch whose failed requests are meant; None: all requests of the file."""


def lock(connection: Connection, project_id: str, file_id: str) -> Input | None:
    """Return what the file stands for, and keep its lines until the transaction ends; None if there is none.

    What a file is for, `jobs.validation` asks.
    """
    given = select(files).where(VISIBLE, files.c.project_id == project_id, files.c.id == file_id)
    row = connection.execute(given.with_for_update(read=True)).one_or_none()
    if row is None:
        return None
    if row.batch_id is None:
        return Input(row)
    if file_id != ids.result_file_id(row.batch_id, "error"):
        return Input(row)
    source = _lock_source(connection, row.batch_id)
    return None if source is None else Input(source, row.batch_id)


def _lock_source(connection: Connection, batch_id: str) -> Row[Any] | None:
    """Return the file that a batch read, even if it was deleted since, as long as its lines are there."""
    statement = (
        select(files)
        .join(batches, batches.c.source_file_id == files.c.id)
        .where(batches.c.id == batch_id, files.c.sweep_began_at.is_(None))
    )
    return connection.execute(statement.with_for_update(read=True, of=files)).one_or_none()


_ALL = text(
    """
    INSERT INTO requests (batch_id, line_no, custom_id, model_no)
    SELECT :batch_id, line_no, custom_id, coalesce(model_no, 0) FROM lines
    WHERE file_id = :file_id AND custom_id IS NOT NULL ORDER BY line_no
    """
)
# Here and below, rows are looked up one by one, not joined: where batches have been small so far, Postgres expects one
# row from each side of a join and compares all with all, for minutes with 50,000 requests.
_FAILED = text(
    """
    INSERT INTO requests (batch_id, line_no, custom_id, model_no)
    SELECT :batch_id, r.line_no, r.custom_id, r.model_no
    FROM requests r
    WHERE r.batch_id = :retry_of
      AND (SELECT x.is_error FROM results x WHERE x.batch_id = r.batch_id AND x.line_no = r.line_no)
    ORDER BY r.line_no
    """
)


_FAILED_SIZE = text(
    """
    SELECT count(*), coalesce(sum(
        (SELECT octet_length(l.content) FROM lines l WHERE l.file_id = :file_id AND l.line_no = x.line_no)
    ), 0)::bigint
    FROM results x WHERE x.batch_id = :retry_of AND x.is_error
    """
)


def size(connection: Connection, given: Input) -> tuple[int, int]:
    """Return how many requests are to be run, and how many bytes their lines have."""
    if given.retry_of is None:
        return given.source.requests, given.source.bytes
    row = connection.execute(_FAILED_SIZE, {"file_id": given.source.id, "retry_of": given.retry_of}).one()
    return int(row[0]), int(row[1])


def write_requests(connection: Connection, batch_id: str, given: Input) -> None:
    """Write the request index of a new batch."""
    if given.retry_of is None:
        connection.execute(_ALL, {"batch_id": batch_id, "file_id": given.source.id})
    else:
        connection.execute(_FAILED, {"batch_id": batch_id, "retry_of": given.retry_of})
