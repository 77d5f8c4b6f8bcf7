"""Cuts a batch into shards. Pure."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass
class Cut:
    """A run of requests, first and last line included."""

    first_line: int
    last_line: int
    total: int
    size: int


def cut(lines: Iterable[tuple[int, int]], *, max_requests: int, max_bytes: int) -> Iterator[Cut]:
    """Yield runs of at most `max_requests` requests and `max_bytes` bytes; a longer line is alone in its run.

    Args:
        lines: (line number, bytes) of each request, in order.
        max_requests: most requests in a run.
        max_bytes: most bytes in a run.
    """
    current: Cut | None = None
    for line_no, size in lines:
        if current and current.total < max_requests and current.size + size <= max_bytes:
            current.last_line, current.total, current.size = line_no, current.total + 1, current.size + size
            continue
        if current:
            yield current
        current = Cut(line_no, line_no, 1, size)
    if current:
        yield current
