"""Streams an upload into `lines`: exact bytes, in flat memory, as what its purpose says that it is.

    chunk -> lines, each checked (`jobs.jsonl`)  -> rows -> COPY, committed every few megabytes (`jobs.blocks`)
          -> or pieces of equal size (`jobs.raw`)

No transaction is open while the client sends.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from sqlalchemy import Connection, Engine

from jobs import db, files, idempotency, ids
from jobs.blocks import Blocks
from jobs.errors import InvalidRequest, PayloadTooLarge
from jobs.files import NewFile
from jobs.idempotency import Call
from jobs.jsonl import Lines
from jobs.protocol import BATCH_PURPOSE, BatchError
from jobs.raw import Pieces
from jobs.settings import Limits

if TYPE_CHECKING:
    from hashlib import _Hash


@dataclass
class Measure:
    """What has come so far: how many bytes, and their SHA-256."""

    max_bytes: int
    param: str
    """The form's field that carries the bytes."""
    size: int = 0
    sha256: "_Hash" = field(default_factory=hashlib.sha256)

    def add(self, chunk: bytes) -> None:
        """Count a chunk.

        Raises:
            PayloadTooLarge: there are more than `max_bytes`.
        """
        self.size += len(chunk)
        if self.size > self.max_bytes:
            message = f"File is too large. The limit is {self.max_bytes} bytes."
            raise PayloadTooLarge(message, param=self.param, code="file_too_large")
        self.sha256.update(chunk)


class Ingest:
    """One upload. `feed` every chunk in order, then `finish`; on any error `discard`.

    It may be as large as its purpose allows, unless `max_bytes` is given. What is wrong with a line is kept for the
    batches made from the file, unless `refuse` is given: that is called with the first problem and raises, so that no
    file comes of it.
    """

    def __init__(
        self,
        engine: Engine,
        limits: Limits,
        project_id: str,
        purpose: str = BATCH_PURPOSE,
        *,
        max_bytes: int | None = None,
        refuse: Callable[[BatchError], None] | None = None,
    ) -> None:
        self.file_id = ids.new_file_id()
        self._engine, self._limits, self._max_bytes = engine, limits, max_bytes
        self._project_id, self._refuse = project_id, refuse
        self._blocks = Blocks(engine, project_id, self.file_id)
        self.expect(purpose)

    def expect(self, purpose: str) -> None:
        """Say, before the first byte, what the file is for: that decides how it is read and how large it may be.

        Raises:
            InvalidRequest: files are not taken for this purpose.
        """
        files.check_purpose(purpose)
        self._purpose, is_batch = purpose, purpose == BATCH_PURPOSE
        self._reader = Lines(self._blocks, self._limits, self._refuse) if is_batch else Pieces(self._blocks)
        usual = self._limits.max_file_bytes if is_batch else self._limits.max_raw_file_bytes
        self._measure = Measure(self._max_bytes or usual, "file")

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the file. Blocks while rows are written.

        Raises:
            PayloadTooLarge: the file is larger than its purpose allows.
            InvalidRequest: a file of requests does not begin with JSON, or has a line that is too long.
            Unavailable: Postgres is away.
        """
        self._measure.add(chunk)
        self._reader.feed(chunk)

    def close(self, filename: str, expires_after_seconds: int | None) -> NewFile:
        """Commit the last bytes; return what `files.publish` makes visible.

        Raises:
            InvalidRequest: the file holds nothing.
            Unavailable: Postgres is away.
        """
        summary = self._reader.end()
        self._blocks.close()
        return NewFile(
            self.file_id,
            self._project_id,
            filename,
            self._purpose,
            self._measure.size,
            self._measure.sha256.digest(),
            expires_after_seconds,
            summary,
        )

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
            InvalidRequest: the file holds nothing, or was read for another purpose.
            StateConflict: the Idempotency-Key was used for another file.
            QuotaExceeded: the project has as many files or bytes as it may have.
            Unavailable: Postgres is away, or the upload took so long that its rows were swept.
        """
        self._check_order(purpose)
        new = self.close(filename, expires_after_seconds)
        asked = f"{filename}\n{purpose}\n{expires_after_seconds}".encode()
        fingerprint = hashlib.sha256(new.sha256 + asked).digest()

        def show(connection: Connection) -> tuple[str, bool]:
            publish = partial(files.publish, connection, new, self._limits.quotas)
            make = publish if then is None else lambda: then(connection, publish())
            return idempotency.once(connection, call, fingerprint, make)

        object_id, is_new = db.once(self._engine, show, self._project_id, point="publish_file")
        if not is_new:
            self.discard()
        return object_id

    def discard(self) -> None:
        """Remove what was written. Does nothing once the file is visible."""
        self._blocks.discard()

    def _check_order(self, purpose: str) -> None:
        files.check_purpose(purpose)
        if purpose != self._purpose:
            message = f"Send 'purpose' before 'file': it came too late, and the file was read as '{self._purpose}'."
            raise InvalidRequest(message, param="purpose", code="invalid_value")
