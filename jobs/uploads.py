"""Uploads: files that are sent in parts, at once and in any order, and put together in the order that is asked for.

    create -> pending -> complete -> completed, and there is a file
                      -> cancel   -> cancelled
                      -> an hour  -> expired

Only a pending upload takes parts, and only a pending one can be completed: what changes an upload locks its row, what
adds a part shares it. Parts that are not needed any more are removed by `jobs.retention`.
"""

import hashlib
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

from sqlalchemy import Connection, Engine, Row, Select, case, func, insert, select, text, update

from jobs import content, db, files, idempotency, ids, quotas
from jobs.blocks import Blocks
from jobs.content import Source
from jobs.errors import InvalidRequest, NotFound, PayloadTooLarge, Unavailable
from jobs.files import NewFile
from jobs.idempotency import Call
from jobs.ingest import Ingest, Measure
from jobs.protocol import BATCH_PURPOSE, Upload, UploadComplete, UploadCreate, UploadPart, unix
from jobs.raw import Pieces
from jobs.settings import Limits, Quotas, Settings
from jobs.tables import files as files_table
from jobs.tables import uploads


def create(connection: Connection, project_id: str, asked: UploadCreate, settings: Settings) -> str:
    """Write an upload without parts and return its id.

    Raises:
        InvalidRequest: files are not taken for this purpose.
        PayloadTooLarge: the file would be larger than its purpose allows.
        QuotaExceeded: the project may not have it.
    """
    files.check_purpose(asked.purpose)
    limits = settings.limits
    most = limits.max_file_bytes if asked.purpose == BATCH_PURPOSE else limits.max_upload_bytes
    if asked.bytes > most:
        message = f"File is too large. The limit is {most} bytes."
        raise PayloadTooLarge(message, param="bytes", code="file_too_large")
    quotas.admit_file(connection, project_id, limits.quotas, size=asked.bytes)
    upload_id = ids.new_upload_id()
    values = {
        "id": upload_id,
        "project_id": project_id,
        "filename": asked.filename,
        "purpose": asked.purpose,
        "bytes": asked.bytes,
        "expires_after_seconds": asked.expires_after and asked.expires_after.seconds,
        "expires_at": func.app_now() + timedelta(seconds=settings.retention.upload_seconds),
    }
    connection.execute(insert(uploads).values(values))
    return upload_id


def find(connection: Connection, project_id: str, upload_id: str) -> Upload:
    """Return an upload, with the file that it became as long as that is there.

    Raises:
        NotFound: no such upload in this project.
    """
    row = _one(connection, _select(project_id, upload_id), upload_id)
    made = select(files_table).where(
        files.VISIBLE, files_table.c.project_id == project_id, files_table.c.id == row.file_id
    )
    file = connection.execute(made).one_or_none()
    return Upload(
        id=row.id,
        bytes=row.bytes,
        created_at=unix(row.created_at),
        expires_at=unix(row.expires_at),
        filename=row.filename,
        purpose=row.purpose,
        status=row.now,
        file=file and files.to_wire(file),
    )


def find_part(connection: Connection, project_id: str, part_id: str) -> UploadPart:
    """Return a part that is there."""
    statement = select(files_table.c.upload_id, files_table.c.created_at)
    row = connection.execute(statement.where(files_table.c.project_id == project_id, files_table.c.id == part_id)).one()
    return UploadPart(id=part_id, created_at=unix(row.created_at), upload_id=row.upload_id)


def _select(project_id: str, upload_id: str) -> Select[Any]:
    """Select an upload, and as `now` the status that clients see."""
    is_late = (uploads.c.status == "pending") & (uploads.c.expires_at <= func.app_now())
    now = case((is_late, "expired"), else_=uploads.c.status).label("now")
    return select(uploads, now).where(uploads.c.project_id == project_id, uploads.c.id == upload_id)


def _one(connection: Connection, statement: Select[Any], upload_id: str) -> Row[Any]:
    if (row := connection.execute(statement).one_or_none()) is None:
        message = f"No such Upload object: {upload_id}"
        raise NotFound(message, param="upload_id")
    return row


def cancel(connection: Connection, project_id: str, upload_id: str) -> None:
    """Have the upload take no more parts, and its parts removed. Cancelling twice changes nothing.

    Raises:
        NotFound: no such upload in this project.
        InvalidRequest: it is completed or expired.
    """
    upload = _one(connection, _select(project_id, upload_id).with_for_update(), upload_id)
    if upload.now == "cancelled":
        return
    _check_pending(upload)
    connection.execute(update(uploads).where(uploads.c.id == upload_id).values(status="cancelled"))


def check_pending(connection: Connection, project_id: str, upload_id: str) -> None:
    """Return if the upload takes parts; it does until the end of the transaction.

    Raises:
        NotFound: no such upload in this project.
        InvalidRequest: it is completed, cancelled or expired.
    """
    _check_pending(_one(connection, _select(project_id, upload_id).with_for_update(read=True), upload_id))


def _check_pending(upload: Row[Any]) -> None:
    if upload.now != "pending":
        message = f"The upload '{upload.id}' is {upload.now}."
        raise InvalidRequest(message, param="upload_id", code=f"upload_{upload.now}")


class Part:
    """One part. `feed` every chunk in order, then `finish`; on any error `discard`."""

    def __init__(self, engine: Engine, limits: Limits, project_id: str, upload_id: str) -> None:
        self._engine, self._project_id, self._upload_id = engine, project_id, upload_id
        self._blocks = Blocks(engine, project_id, ids.new_part_id())
        self._pieces = Pieces(self._blocks, "data")
        self._measure = Measure(limits.max_part_bytes, "data")

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the part. Blocks while rows are written.

        Raises:
            PayloadTooLarge: the part is larger than `limits.max_part_bytes`.
            Unavailable: Postgres is away.
        """
        self._measure.add(chunk)
        self._pieces.feed(chunk)

    def finish(self, call: Call) -> str:
        """Add the part to its upload and return its id; its bytes are committed.

        A call that repeats an Idempotency-Key gets the part of the call before. A retry of the SDK's own gets a part
        of its own instead of an equal one of a moment ago, which may be meant for another place in the file: a part
        that nobody names goes with its upload.

        Raises:
            InvalidRequest: the part is empty, or the upload takes no parts any more.
            NotFound: no such upload in this project.
            StateConflict: the Idempotency-Key was used for another part.
            Unavailable: Postgres is away, or the part took so long that its rows were swept.
        """
        self._pieces.end()
        self._blocks.close()
        first, fingerprint = replace(call, is_retry=False), self._measure.sha256.digest()
        part_id, is_new = db.once(
            self._engine,
            lambda connection: idempotency.once(connection, first, fingerprint, partial(self._add, connection)),
            self._project_id,
            point="add_part",
        )
        if not is_new:
            self.discard()
        return part_id

    def discard(self) -> None:
        """Remove what was written. Does nothing after `finish`."""
        self._blocks.discard()

    def _check_room(self, connection: Connection) -> None:
        """Let parts be sent twice, as the SDK may do when it gets no answer, but not without end."""
        room = connection.execute(_ROOM, {"id": self._upload_id}).scalar_one()
        if self._measure.size > room:
            message = "The parts of this upload have more than twice the bytes that were declared."
            raise PayloadTooLarge(message, param="data", code="file_too_large")

    def _add(self, connection: Connection) -> str:
        check_pending(connection, self._project_id, self._upload_id)
        self._check_room(connection)
        part_id = self._blocks.file_id
        whole = update(files_table).where(
            files_table.c.id == part_id, files_table.c.status == "uploading", files_table.c.sweep_began_at.is_(None)
        )
        values = {"status": "part", "upload_id": self._upload_id, "bytes": self._measure.size}
        if not connection.execute(whole.values(**values, created_at=func.app_now())).rowcount:
            message = "The part took too long and was given up. Please try again."
            raise Unavailable(message)
        return part_id


_ROOM = text(
    """
    SELECT 2 * u.bytes - coalesce((SELECT sum(f.bytes) FROM files f WHERE f.upload_id = u.id), 0)
    FROM uploads u WHERE u.id = :id
    """
)


def complete(engine: Engine, limits: Limits, project_id: str, upload_id: str, asked: UploadComplete) -> None:
    """Make the upload's file of its parts, checked as a file that is sent in one call; it is visible afterwards.

    The same call again, even at the same time, makes no second file. An upload that was pending is so after an error.

    Raises:
        InvalidRequest: the parts are not this upload's, not each named once, or not the bytes that were declared, or
            the file is not what its purpose asks for; or the upload is cancelled, expired, or completed in another way.
        NotFound: no such upload in this project.
        Unavailable: Postgres is away, or the parts were swept.
    """
    try:
        _complete(engine, limits, project_id, upload_id, asked)
    except (InvalidRequest, Unavailable):
        # The same call was faster, and its parts were swept under the hands of this one.
        with db.reading(engine, project_id) as connection:
            if not _is_done(_one(connection, _select(project_id, upload_id), upload_id), asked):
                raise


def _complete(engine: Engine, limits: Limits, project_id: str, upload_id: str, asked: UploadComplete) -> None:
    with db.reading(engine, project_id) as connection:
        upload = _one(connection, _select(project_id, upload_id), upload_id)
        _check_pending(upload)
        _check_parts(connection, upload, asked.part_ids)
    ingest = Ingest(engine, limits, project_id, upload.purpose, max_bytes=upload.bytes)
    try:
        new = _join(engine, ingest, upload, asked)
        db.once(
            engine,
            lambda connection: _publish(connection, upload, asked, new, limits.quotas),
            project_id,
            point="complete_upload",
        )
    except BaseException:
        ingest.discard()
        raise


def _is_done(upload: Row[Any], asked: UploadComplete) -> bool:
    return bool(upload.status == "completed" and upload.part_ids == asked.part_ids)


_PARTS = text("SELECT id, bytes FROM files WHERE id = ANY(:part_ids) AND upload_id = :upload_id")


def _check_parts(connection: Connection, upload: Row[Any], part_ids: Sequence[str]) -> None:
    if len(set(part_ids)) < len(part_ids):
        message = "A part is named twice."
        raise InvalidRequest(message, param="part_ids", code="invalid_value")
    rows = connection.execute(_PARTS, {"upload_id": upload.id, "part_ids": list(part_ids)})
    sizes = {row.id: row.bytes for row in rows}
    if unknown := next((each for each in part_ids if each not in sizes), None):
        message = f"The upload has no part '{unknown}'."
        raise InvalidRequest(message, param="part_ids", code="invalid_value")
    if (size := sum(sizes.values())) != upload.bytes:
        message = f"The upload was declared with {upload.bytes} bytes, its parts have {size}."
        raise InvalidRequest(message, param="bytes", code="invalid_value")


def _join(engine: Engine, ingest: Ingest, upload: Row[Any], asked: UploadComplete) -> NewFile:
    """Write the parts, one after the other, as one file."""
    md5, size = hashlib.md5(usedforsecurity=False), 0
    with closing(_read(engine, asked.part_ids)) as pages:
        for page in pages:
            md5.update(page)
            size += len(page)
            ingest.feed(page)
    if size != upload.bytes:
        message = "The parts were removed in the meantime."
        raise Unavailable(message)
    if asked.md5 and asked.md5.lower() != md5.hexdigest():
        message = f"The MD5 of the parts is {md5.hexdigest()}, not the one that was given."
        raise InvalidRequest(message, param="md5", code="invalid_value")
    return ingest.close(upload.filename, upload.expires_after_seconds)


def _read(engine: Engine, part_ids: Sequence[str]) -> Generator[bytes]:
    for part_id in part_ids:
        yield from content.stream(engine, Source(part_id))


def _publish(connection: Connection, upload: Row[Any], asked: UploadComplete, new: NewFile, defaults: Quotas) -> None:
    """Show the file and end the upload; one that expired while its parts were read is in time."""
    locked = _one(connection, _select(upload.project_id, upload.id).with_for_update(), upload.id)
    if locked.status != "pending":
        _check_pending(locked)
    # First: what was kept free for the upload is the file's from here on.
    values = {"status": "completed", "file_id": new.id, "part_ids": asked.part_ids}
    connection.execute(update(uploads).where(uploads.c.id == upload.id).values(values))
    files.publish(connection, new, defaults)
