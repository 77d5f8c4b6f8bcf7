"""Cuts the requests of a table into files that a batch may have, each ending with a whole row."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from jobs.errors import InvalidRequest

Row = tuple[int, list[bytes]]
"""The number of a row, from 1, and its requests, a line each; a row without text has none."""


@dataclass(frozen=True)
class Part:
    """Requests for one batch, in a file."""

    number: int
    path: Path
    last_row: int
    requests: int
    sha256: str


class _Open:
    """The part that is being written."""

    def __init__(self, number: int, path: Path) -> None:
        self.number, self.path = number, path
        self.requests = self.size = self.last_row = 0
        self._hash = hashlib.sha256()
        self._file = path.open("wb")

    def add(self, row: int, lines: list[bytes]) -> None:
        for line in lines:
            self._file.write(line)
            self._hash.update(line)
            self.size += len(line)
        self.requests += len(lines)
        self.last_row = row

    def close(self) -> Part:
        self._file.close()
        return Part(self.number, self.path, self.last_row, self.requests, self._hash.hexdigest())


def cut(rows: Iterable[Row], folder: Path, *, max_requests: int, max_bytes: int) -> Iterator[Part]:
    """Yield the parts in order, each when its file is complete. The next one is begun only then.

    Equal rows are cut into equal parts. A table without any text has no parts.

    Raises:
        InvalidRequest: one row is too much for a batch.
    """
    part: _Open | None = None
    try:
        for row, lines in rows:
            size = sum(map(len, lines))
            if len(lines) > max_requests or size > max_bytes:
                message = f"Row {row} has {len(lines)} requests of {size} bytes, a batch {max_requests} of {max_bytes}."
                raise InvalidRequest(message)
            if part and (part.requests + len(lines) > max_requests or part.size + size > max_bytes):
                yield part.close()
                part = _Open(part.number + 1, folder / f"part-{part.number + 1}.jsonl")
            if lines and part is None:
                part = _Open(1, folder / "part-1.jsonl")
            if part:
                part.add(row, lines)
        if part:
            yield part.close()
    finally:
        if part:
            part.close()
