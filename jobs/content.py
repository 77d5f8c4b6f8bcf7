"""Streams the bytes of a file out of Postgres, in line order and in flat memory.

Each page is a short transaction of its own, so that a client that reads slowly holds nothing open.
"""

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import psycopg
from psycopg import sql
from sqlalchemy import Engine

from jobs import db, pgcopy

# Two pages in memory at a time.
PAGE_BYTES = 4_000_000
PAGE_LINES = 8_192

# `before` counts the bytes of the page's earlier lines without reading them (octet_length needs no decompression),
# so that a page stays small however long its lines are.
_PAGE = sql.SQL(
    """
    COPY (SELECT line_no, content FROM (
        SELECT line_no, content, sum(octet_length(content)) OVER (ORDER BY line_no) - octet_length(content) AS before
        FROM {source} AND line_no > {after} ORDER BY line_no LIMIT {page_lines}) AS page
    WHERE before < {page_bytes} ORDER BY line_no) TO STDOUT (FORMAT BINARY)
    """
)
_LINES = sql.SQL("lines WHERE file_id = {}")
_RESULTS = sql.SQL("results WHERE batch_id = {} AND is_error = {}")


@dataclass(frozen=True)
class Source:
    """Where the lines of a file are."""

    file_id: str
    batch_id: str | None = None
    is_error: bool = False

    def _sql(self) -> sql.Composed:
        if self.batch_id is None:
            return _LINES.format(sql.Literal(self.file_id))
        return _RESULTS.format(sql.Literal(self.batch_id), sql.Literal(self.is_error))

    def page(self, after: int) -> sql.Composed:
        return _PAGE.format(
            source=self._sql(),
            after=sql.Literal(after),
            page_lines=sql.Literal(PAGE_LINES),
            page_bytes=sql.Literal(PAGE_BYTES),
        )


def stream(engine: Engine, source: Source) -> Generator[bytes]:
    """Yield the file in pieces of about `PAGE_BYTES`. What is committed while it is read may or may not be in it.

    Raises:
        Unavailable: Postgres is away; the stream ends early.
    """
    reader = ThreadPoolExecutor(1, thread_name_prefix="content")
    try:
        upcoming = reader.submit(_read_page, engine, source, 0)
        while True:
            page, after = upcoming.result()
            if not page:
                return
            if len(page) > 2 * PAGE_BYTES:
                # One line that long is enough to hold.
                yield page
                page = b""
            # Read ahead while the client takes this one.
            upcoming = reader.submit(_read_page, engine, source, after)
            if page:
                yield page
    finally:
        # Without waiting: a client that leaves closes this on the event loop.
        reader.shutdown(wait=False, cancel_futures=True)


def _read_page(engine: Engine, source: Source, after: int) -> tuple[bytes, int]:
    with db.transaction(engine) as connection:
        rows = list(pgcopy.unpack(memoryview(_copy_out(db.driver(connection), source.page(after)))))
    for line_no, _ in rows[-1:]:
        assert line_no is not None
        after = int.from_bytes(line_no, "big")
    return b"".join(content for _, content in rows if content), after


def _copy_out(connection: psycopg.Connection[object], statement: sql.Composed) -> bytes:
    with connection.cursor().copy(statement) as copy:
        return b"".join(copy)
