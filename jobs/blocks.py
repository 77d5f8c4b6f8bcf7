"""Writes the rows of a file into `lines`, in blocks of some megabytes, each committed by itself.

One block is written while the next one is put together. The file is invisible until `jobs.files.publish`; what an
upload that broke leaves behind, `discard` or the reconciler removes.
"""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from weakref import WeakSet

from sqlalchemy import Connection, Engine, Insert, Update, delete, func, insert, select, text, update

from jobs import db, pgcopy
from jobs.tables import files

# While a transaction begins and ends neither side does anything else: of 210 MB in blocks of 4 MB a third of the time,
# of 16 MB a tenth, and 24 MB are no faster (docs/benchmarks.md, D1).
FLUSH_BYTES = 16_000_000
# What the blocks that begin share, so that many uploads have small ones: but not smaller than these.
SHARED_BYTES, LEAST_BYTES = 64_000_000, 1_000_000
# A block that is larger by this ends with a long line, and the next one waits for it.
LONG_BYTES = 2_000_000
# A slow upload says that it is still there well before it is taken for given up, after an hour.
MOST_SECONDS = 600
# What a row takes beside its content and key, about: its fields are objects of their own.
ROW_BYTES = 300
COPY_LINES = "COPY lines (file_id, line_no, custom_id, model_no, content) FROM STDIN (FORMAT BINARY)"
# Removed in one transaction: some seconds of work, far from the statement timeout.
DROP_BYTES = 500_000_000

_DROP = text(
    """
    DELETE FROM lines WHERE file_id = :id AND line_no <= (
        SELECT max(line_no) FROM (
            SELECT line_no, sum(octet_length(content)) OVER (ORDER BY line_no) - octet_length(content) AS before
            FROM lines WHERE file_id = :id
        ) AS placed WHERE before < :most)
    """
)
_LEFT = text("SELECT FROM lines WHERE file_id = :id LIMIT 1")
# A block need not be on disk when its COMMIT answers: Postgres writes its log in order, and the commit that makes the
# file visible does wait, for all blocks before it too.
_WITHOUT_WAITING = text("SET LOCAL synchronous_commit = off")


def drop(connection: Connection, file_id: str) -> bool:
    """Delete rows of a file, about `DROP_BYTES` of them; return whether none is left."""
    connection.execute(_DROP, {"id": file_id, "most": DROP_BYTES})
    return connection.execute(_LEFT, {"id": file_id}).first() is None


# Those that are not closed. One that is forgotten takes no room.
_growing: WeakSet["Blocks"] = WeakSet()


def _share() -> int:
    """Return the bytes of a block that begins now."""
    return min(FLUSH_BYTES, max(LEAST_BYTES, SHARED_BYTES // max(1, len(_growing))))


class Blocks:
    """The rows of one file. `add` them in order, then `close`; on any error `discard`."""

    def __init__(self, engine: Engine, project_id: str, file_id: str) -> None:
        self.file_id = file_id
        self._engine, self._project_id = engine, project_id
        self._row_start = pgcopy.row_start(5) + pgcopy.field(file_id.encode())
        self._begun = False
        _growing.add(self)
        self._begin_block()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="ingest")
        self._writing: Future[None] | None = None

    def add(
        self, line_no: int, custom_id: str | None, content: bytes, end: bytes = b"", *, model_no: int | None = None
    ) -> None:
        """Take one row, whose bytes are `content` and `end`. Blocks while the block before is written.

        Raises:
            Unavailable: Postgres is away.
        """
        key = pgcopy.NULL if custom_id is None else pgcopy.field(custom_id.encode())
        length = pgcopy.pack_length(len(content) + len(end))
        model = pgcopy.int2(model_no)
        self._packed += (self._row_start, pgcopy.int4(line_no), key, model, length, content, end)
        self._packed_bytes += len(content) + len(key) + ROW_BYTES
        if self._packed_bytes >= self._most or time.monotonic() >= self._until:
            self._flush()

    def close(self) -> None:
        """Wait until every row is committed.

        Raises:
            Unavailable: Postgres is away.
        """
        self._flush()
        self._settle()
        self._end()

    def discard(self) -> None:
        """Remove what was written. Does nothing once the file is published."""
        self._end()
        while self._begun and not self._drop_some():
            pass

    def _end(self) -> None:
        _growing.discard(self)
        self._writer.shutdown()

    def _drop_some(self) -> bool:
        """Remove a run of rows, and the file with the last one; return whether it is over."""
        unfinished = (files.c.id == self.file_id) & (files.c.status == "uploading")
        with db.transaction(self._engine, point="drop_rows") as connection:
            if connection.execute(select(files.c.id).where(unfinished).with_for_update()).first() is None:
                return True
            if is_empty := drop(connection, self.file_id):
                connection.execute(delete(files).where(unfinished))
            return is_empty

    def _begin_block(self) -> None:
        self._packed: list[bytes] = []
        self._packed_bytes = 0
        self._most, self._until = _share(), time.monotonic() + MOST_SECONDS

    def _flush(self) -> None:
        rows, size = self._packed, self._packed_bytes
        self._begin_block()
        self._settle()
        self._writing = self._writer.submit(self._write, rows)
        if size > FLUSH_BYTES + LONG_BYTES:
            # One block in memory is enough.
            self._settle()

    def _settle(self) -> None:
        """Wait until the block before is committed; raise what went wrong with it."""
        if self._writing:
            self._writing.result()

    def _write(self, rows: list[bytes]) -> None:
        db.once(self._engine, lambda connection: self._copy(connection, rows), point="write_block")
        self._begun = True

    def _copy(self, connection: Connection, rows: list[bytes]) -> None:
        connection.execute(_WITHOUT_WAITING)
        connection.execute(self._touch())
        with db.driver(connection).cursor().copy(COPY_LINES) as copy:
            for piece in pgcopy.pieces(rows):
                copy.write(piece)

    def _touch(self) -> Insert | Update:
        """Make the file, or say that it is still being sent: it is taken for given up when it stands still."""
        if self._begun:
            return update(files).where(files.c.id == self.file_id).values(created_at=func.app_now())
        return insert(files).values(
            id=self.file_id, project_id=self._project_id, purpose="", filename="", status="uploading"
        )
