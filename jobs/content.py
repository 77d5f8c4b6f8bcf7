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
# Lines that are looked at for a page: twice as many as the last one took, between these.
MIN_PAGE_LINES, MAX_PAGE_LINES = 256, 16_384

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

    def page(self, after: int, most_lines: int) -> sql.Composed:
        return _PAGE.format(
            source=self._sql(),
            after=sql.Literal(after),
            page_lines=sql.Literal(most_lines),
            page_bytes=sql.Literal(PAGE_BYTES),
        )


@dataclass(frozen=True)
class Page:
    """A run of lines. `last_line` and `lines` say where it ends and how many it has."""

    content: bytes = b""
    last_line: int = 0
    lines: int = MIN_PAGE_LINES


def stream(engine: Engine, source: Source) -> Generator[bytes]:
    """Yield the file in pieces of about `PAGE_BYTES`. What is committed while it is read may or may not be in it.

    Raises:
        Unavailable: Postgres is away; the stream ends early.
    """
    reader = ThreadPoolExecutor(1, thread_name_prefix="content")
    try:
        page = _read_page(engine, source, Page())
        while page.content:
            if len(page.content) > 2 * PAGE_BYTES:
                # One line that long is enough to hold.
                yield page.content
                page = _read_page(engine, source, Page(b"", page.last_line))
                continue
            # Read ahead while the client takes this one.
            upcoming = reader.submit(_read_page, engine, source, page)
            yield page.content
            page = upcoming.result()
    finally:
        # Without waiting: a client that leaves closes this on the event loop.
        reader.shutdown(wait=False, cancel_futures=True)


def _read_page(engine: Engine, source: Source, before: Page) -> Page:
    most_lines = min(max(2 * before.lines, MIN_PAGE_LINES), MAX_PAGE_LINES)
    with db.transaction(engine) as connection:
        copied = _copy_out(db.driver(connection), source.page(before.last_line, most_lines))
    rows = list(pgcopy.unpack(memoryview(copied)))
    if not rows or (last_line := rows[-1][0]) is None:
        return Page()
    content = b"".join(content for _, content in rows if content)
    return Page(content, int.from_bytes(last_line, "big"), len(rows))


def _copy_out(connection: psycopg.Connection[object], statement: sql.Composed) -> bytes:
    with connection.cursor().copy(statement) as copy:
        return b"".join(copy)
