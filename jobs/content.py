"""Streams the bytes of a file out of Postgres, in line order and in flat memory.

Each page is a short transaction of its own, so that a client that reads slowly holds nothing open.
"""

import hashlib
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql
from sqlalchemy import Engine, Row

from jobs import db, pgcopy
from jobs.errors import DamagedFile

# Two pages in memory at a time, and a third on its way to the client.
PAGE_BYTES = 4_000_000
# All downloads of a process share this for their pages: two hundred at once, which all wait for slow readers, take
# 190 MB and not 2.4 GB.
SHARED_PAGE_BYTES, LEAST_PAGE_BYTES = 24_000_000, 64_000
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
# Of a file that has just been written Postgres expects a handful of lines, and for each page it would collect and sort
# all that follow.
_IN_ORDER = "SET LOCAL enable_bitmapscan = off"
_LINES = sql.SQL("lines WHERE file_id = {}")
_RESULTS = sql.SQL("results WHERE batch_id = {} AND is_error = {}")


@dataclass(frozen=True)
class Source:
    """Where the lines of a file are."""

    file_id: str
    batch_id: str | None = None
    is_error: bool = False
    project_id: str | None = None
    """Postgres shows the lines of this project only; None: of all."""

    @classmethod
    def of(cls, row: Row[*tuple[Any, ...]], project_id: str) -> "Source":
        """Return where the lines of the file in this row of `files` are, for its own project to read."""
        return cls(row.id, row.batch_id, row.id.endswith("-error"), project_id)

    def _sql(self) -> sql.Composed:
        if self.batch_id is None:
            return _LINES.format(sql.Literal(self.file_id))
        return _RESULTS.format(sql.Literal(self.batch_id), sql.Literal(self.is_error))

    def locate(self, start: int) -> sql.Composed:
        return _LOCATE.format(source=self._sql(), start=sql.Literal(start))

    def page(self, after: int, most_lines: int) -> sql.Composed:
        return _PAGE.format(
            source=self._sql(),
            after=sql.Literal(after),
            page_lines=sql.Literal(most_lines),
            page_bytes=sql.Literal(_page_bytes()),
        )


# One for each download that is under way.
_readers: set[ThreadPoolExecutor] = set()


def _page_bytes() -> int:
    share = SHARED_PAGE_BYTES // max(1, len(_readers))
    return min(PAGE_BYTES, max(LEAST_PAGE_BYTES, share))


# The line that holds a byte of the file, and how many bytes come before it.
_LOCATE = sql.SQL(
    """
    SELECT line_no, before FROM (
        SELECT line_no, sum(octet_length(content)) OVER (ORDER BY line_no) - octet_length(content) AS before
        FROM {source}
    ) AS placed WHERE before <= {start} ORDER BY line_no DESC LIMIT 1
    """
)


@dataclass(frozen=True)
class Page:
    """A run of lines. `last_line` and `lines` say where it ends and how many it has."""

    content: bytes = b""
    last_line: int = 0
    lines: int = MIN_PAGE_LINES


def stream_range(engine: Engine, source: Source, start: int, length: int) -> Generator[bytes]:
    """Yield `length` bytes of the file from byte `start` on, as `stream` does. Only the lines they are in are read."""
    row = db.read(
        engine,
        lambda connection: db.driver(connection).execute(source.locate(start)).fetchone(),
        source.project_id,
    )
    if row is None:
        return
    line_no, before = row
    skip, left = start - int(before), length
    pages = stream(engine, source, after=line_no - 1)
    try:
        while left > 0 and (page := next(pages, b"")):
            piece, skip = page[skip : skip + left], max(0, skip - len(page))
            left -= len(piece)
            yield piece
    finally:
        pages.close()


def checked(pieces: Generator[bytes], sha256: bytes) -> Generator[bytes]:
    """Yield the bytes of a whole file; the last one only if together they are what was uploaded.

    Raises:
        DamagedFile: they are not. All but the last byte are with the client by then, which it can tell by the length.
    """
    digest, last = hashlib.sha256(), b""
    try:
        for piece in pieces:
            digest.update(piece)
            yield last + piece[:-1]
            last = piece[-1:]
        if digest.digest() != sha256:
            raise DamagedFile
        yield last
    finally:
        pieces.close()


def stream(engine: Engine, source: Source, *, after: int = 0) -> Generator[bytes]:
    """Yield the file, from the line after `after` on, in pieces of about `PAGE_BYTES`.

    What is committed while it is read may or may not be in it.

    Raises:
        Unavailable: Postgres is away; the stream ends early.
    """
    reader = ThreadPoolExecutor(1, thread_name_prefix="content")
    _readers.add(reader)
    try:
        page = _read_page(engine, source, Page(last_line=after))
        while page.content:
            if len(page.content) > 2 * PAGE_BYTES:
                # One line that long is enough to hold.
                last_line = page.last_line
                yield page.content
                del page
                page = _read_page(engine, source, Page(last_line=last_line))
                continue
            # Read ahead while the client takes this one.
            upcoming = reader.submit(_read_page, engine, source, page)
            yield page.content
            page = upcoming.result()
    finally:
        _readers.discard(reader)
        # Without waiting: a client that leaves closes this on the event loop.
        reader.shutdown(wait=False, cancel_futures=True)


def _read_page(engine: Engine, source: Source, before: Page) -> Page:
    most_lines = min(max(2 * before.lines, MIN_PAGE_LINES), MAX_PAGE_LINES)
    statement = source.page(before.last_line, most_lines)
    copied = db.read(engine, lambda connection: _copy_out(db.driver(connection), statement), source.project_id)
    rows = list(pgcopy.unpack(memoryview(copied)))
    if not rows or (last_line := rows[-1][0]) is None:
        return Page()
    content = b"".join(content for _, content in rows if content)
    return Page(content, int.from_bytes(last_line, "big"), len(rows))


def _copy_out(connection: psycopg.Connection[Any], statement: sql.Composed) -> bytes:
    connection.execute(_IN_ORDER)
    with connection.cursor().copy(statement) as copy:
        return b"".join(copy)
