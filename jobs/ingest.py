"""Streams an upload into `lines`: exact bytes, checked line by line, in flat memory.

    chunk -> lines -> parse -> packed rows -> COPY, committed every few megabytes

One block is written while the next one is parsed: Postgres takes longer for a block than we do.
No transaction is open while the client sends. The file is invisible until `finish`; what an upload that broke
leaves behind, `discard` or the reconciler removes.
"""

import hashlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial

from sqlalchemy import Connection, Engine, delete, func, insert, update

from jobs import db, idempotency, ids, lines, pgcopy
from jobs.errors import InvalidRequest, PayloadTooLarge, Unavailable
from jobs.idempotency import Call
from jobs.protocol import BatchError
from jobs.settings import Limits
from jobs.tables import files
from jobs.tables import lines as lines_table

# Big enough that a commit costs nothing beside its rows, small enough to keep the memory of an upload flat.
FLUSH_BYTES = 4_000_000
# A file with more different values than this is not valid for any batch; the summary need not grow further.
MAX_DISTINCT = 100
# Lines beyond two for each request that a file may have.
SPARE_LINES = 1_000
# What is handed to COPY at once.
PIECE_BYTES = 262_144
COPY_LINES = "COPY lines (file_id, line_no, custom_id, content) FROM STDIN (FORMAT BINARY)"


@dataclass
class _Summary:
    """What is known of the file so far."""

    size: int = 0
    line_no: int = 0
    requests: int = 0
    urls: set[str] = field(default_factory=set)
    models: set[str] = field(default_factory=set)
    first_lines: dict[str, int] = field(default_factory=dict)
    problems: list[BatchError] = field(default_factory=list)


class Ingest:
    """One upload. `feed` every chunk in order, then `finish`; on any error `discard`.

    What is wrong with a line is kept for the batches made from the file, unless `refuse` is given: that is called
    with the first problem and raises, so that no file comes of it.
    """

    def __init__(
        self, engine: Engine, limits: Limits, project_id: str, *, refuse: Callable[[BatchError], None] | None = None
    ) -> None:
        self.file_id = ids.new_file_id()
        self._engine, self._limits, self._project_id, self._refuse = engine, limits, project_id, refuse
        self._sum = _Summary()
        self._sha256 = hashlib.sha256()
        # The line that has no end yet, in pieces: a long one is put together once.
        self._open: list[bytes] = []
        self._open_bytes = 0
        self._packed: list[bytes] = []
        self._packed_bytes = 0
        self._row_start = pgcopy.row_start(4) + pgcopy.field(self.file_id.encode())
        self._begun = False
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="ingest")
        self._writing: Future[None] | None = None

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the file. Blocks while rows are written.

        Raises:
            PayloadTooLarge: the file is larger than `limits.max_file_bytes`.
            InvalidRequest: the first line is not JSON, or a line is longer than `limits.max_line_bytes`.
            Unavailable: Postgres is away.
        """
        self._sum.size += len(chunk)
        if self._sum.size > self._limits.max_file_bytes:
            message = f"File is too large. The limit is {self._limits.max_file_bytes} bytes."
            raise PayloadTooLarge(message, param="file", code="file_too_large")
        self._sha256.update(chunk)
        head, *complete = chunk.split(b"\n")
        self._open.append(head)
        self._open_bytes += len(head)
        self._check_length(self._open_bytes, self._sum.line_no + 1)
        for following in complete:
            self._line(self._take_open(), b"\n")
            self._open, self._open_bytes = [following], len(following)

    def finish(
        self,
        call: Call,
        *,
        filename: str,
        purpose: str,
        expires_after_seconds: int | None,
        then: Callable[[Connection, str], str] | None = None,
    ) -> str:
        """Make the file visible and return its id; of a call that was made before, return the file that it made.

        Its bytes are committed. With `then`, what that makes of the file in the same transaction is the call's object:
        it gets the file's id and returns its own.

        Raises:
            InvalidRequest: the file holds no request.
            StateConflict: the Idempotency-Key was used for another file.
            Unavailable: Postgres is away, or the upload took so long that its rows were swept.
        """
        if self._open_bytes:
            self._line(self._take_open(), b"")
        if not self._sum.requests:
            message = "Invalid file format for Batch API. Must be .jsonl: the file is empty."
            raise InvalidRequest(message, param="file", code="empty_file")
        self._flush()
        self._settle()
        self._writer.shutdown()
        asked = f"{filename}\n{purpose}\n{expires_after_seconds}".encode()
        fingerprint = hashlib.sha256(self._sha256.digest() + asked).digest()
        with db.transaction(self._engine) as connection:
            publish = partial(self._publish, connection, filename, purpose, expires_after_seconds)
            make = publish if then is None else lambda: then(connection, publish())
            object_id, is_new = idempotency.once(connection, call, fingerprint, make)
        if not is_new:
            self.discard()
        return object_id

    def discard(self) -> None:
        """Remove what was written. Does nothing after `finish`."""
        self._writer.shutdown()
        if not self._begun:
            return
        with db.transaction(self._engine) as connection:
            unfinished = delete(files).where(files.c.id == self.file_id, files.c.status == "uploading")
            if connection.execute(unfinished).rowcount:
                connection.execute(delete(lines_table).where(lines_table.c.file_id == self.file_id))

    def _line(self, content: bytes, end: bytes) -> None:
        self._sum.line_no += 1
        self._check_count()
        self._check_length(len(content), self._sum.line_no)
        custom_id = None if lines.is_blank(content) else self._request(content)
        self._pack(custom_id, content, end)
        if self._packed_bytes >= FLUSH_BYTES:
            self._flush()

    def _check_count(self) -> None:
        # Blank lines are rows too, and a row costs far more than the one byte that it holds.
        most = 2 * self._limits.max_requests + SPARE_LINES
        if self._sum.line_no > most:
            message = f"The file has more than {most} lines."
            raise InvalidRequest(message, param="file", code="too_many_lines")

    def _take_open(self) -> bytes:
        content = self._open[0] if len(self._open) == 1 else b"".join(self._open)
        self._open, self._open_bytes = [], 0
        return content

    def _check_length(self, size: int, number: int) -> None:
        if size > self._limits.max_line_bytes:
            message = f"Line {number} is longer than {self._limits.max_line_bytes} bytes."
            raise InvalidRequest(message, param="file", code="line_too_long")

    def _request(self, content: bytes) -> str | None:
        """Check one request; return its custom_id, or None and the problem in the summary."""
        self._sum.requests += 1
        if self._sum.requests > self._limits.max_requests:
            self._too_many()
            return None
        if self._sum.line_no == 1:
            content = content.removeprefix(lines.BOM)
        try:
            line = lines.parse(content, max_custom_id_chars=self._limits.max_custom_id_chars)
            self._note(line)
        except lines.LineProblem as problem:
            self._problem(problem)
            return None
        return line.custom_id

    def _note(self, line: lines.Line) -> None:
        first = self._sum.first_lines.setdefault(line.custom_id, self._sum.line_no)
        if first != self._sum.line_no:
            message = f"Duplicate custom_id: the same value is on line {first}."
            raise lines.LineProblem("duplicate_custom_id", message, "custom_id")
        if len(self._sum.urls) < MAX_DISTINCT:
            self._sum.urls.add(line.url)
        if len(self._sum.models) < MAX_DISTINCT:
            self._sum.models.add(line.body.model)

    def _problem(self, problem: lines.LineProblem) -> None:
        if self._refuse is not None:
            self._refuse(problem.at(self._sum.line_no))
        if self._sum.requests == 1 and problem.code == "invalid_json_line":
            message = f"Invalid file format for Batch API. Must be .jsonl. {problem.message}"
            raise InvalidRequest(message, param="file", code="invalid_file_format")
        if len(self._sum.problems) < self._limits.max_reported_lines:
            self._sum.problems.append(problem.at(self._sum.line_no))

    def _too_many(self) -> None:
        if self._sum.requests == self._limits.max_requests + 1:
            message = f"The file has more than {self._limits.max_requests} requests."
            problem = BatchError(code="too_many_tasks", message=message)
            if self._refuse is not None:
                self._refuse(problem)
            self._sum.problems.append(problem)

    def _pack(self, custom_id: str | None, content: bytes, end: bytes) -> None:
        key = pgcopy.NULL if custom_id is None else pgcopy.field(custom_id.encode())
        length = pgcopy.pack_length(len(content) + len(end))
        self._packed += (self._row_start, pgcopy.int4(self._sum.line_no), key, length, content, end)
        self._packed_bytes += len(content) + 100

    def _flush(self) -> None:
        rows, size, self._packed, self._packed_bytes = self._packed, self._packed_bytes, [], 0
        self._settle()
        self._writing = self._writer.submit(self._write, rows)
        if size > 2 * FLUSH_BYTES:
            # Long lines: one block in memory is enough.
            self._settle()

    def _settle(self) -> None:
        """Wait until the block before is committed; raise what went wrong with it."""
        if self._writing:
            self._writing.result()

    def _write(self, rows: list[bytes]) -> None:
        with db.transaction(self._engine) as connection:
            if not self._begun:
                connection.execute(
                    insert(files).values(
                        id=self.file_id, project_id=self._project_id, purpose="", filename="", status="uploading"
                    )
                )
            with db.driver(connection).cursor().copy(COPY_LINES) as copy:
                for piece in pgcopy.pieces(rows, PIECE_BYTES):
                    copy.write(piece)
        self._begun = True

    def _publish(self, connection: Connection, filename: str, purpose: str, expires_after_seconds: int | None) -> str:
        expires = timedelta(seconds=expires_after_seconds) if expires_after_seconds else None
        statement = (
            update(files)
            .where(files.c.id == self.file_id, files.c.status == "uploading", files.c.swept_at.is_(None))
            .values(
                status="processed",
                filename=filename,
                purpose=purpose,
                bytes=self._sum.size,
                sha256=self._sha256.digest(),
                requests=self._sum.requests,
                urls=sorted(self._sum.urls),
                models=sorted(self._sum.models),
                problems=[problem.model_dump() for problem in self._sum.problems] or None,
                created_at=func.app_now(),
                expires_at=None if expires is None else func.app_now() + expires,
            )
        )
        if not connection.execute(statement).rowcount:
            message = "The upload took too long and was given up. Please try again."
            raise Unavailable(message)
        return self.file_id
