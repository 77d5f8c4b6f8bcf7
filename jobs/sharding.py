"""Cuts a batch into shards. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass
class Cut:
    """Requests of one model that follow each other, first and last line included; those of others may lie between."""

    model_no: int
    first_line: int
    last_line: int
    total: int
    size: int


def cut(requests: Iterable[tuple[int, int, int]], *, max_requests: int, max_bytes: int) -> list[Cut]:
    """Return runs of at most `max_requests` requests and `max_bytes` bytes; a longer line is alone in its run.

    Every request is in one run, and every run is of one model: an engine that swaps adapters does it between runs. They
    come model by model, those of one model in the order of their lines.

    Args:
        requests: (line number, bytes, number of its model) of each request, in order.
        max_requests: most requests in a run.
        max_bytes: most bytes in a run.
    """
    cuts: list[Cut] = []
    open_cuts: dict[int, Cut] = {}
    for line_no, size, model_no in requests:
        current = open_cuts.get(model_no)
        if current and current.total < max_requests and current.size + size <= max_bytes:
            current.last_line, current.total, current.size = line_no, current.total + 1, current.size + size
            continue
        open_cuts[model_no] = Cut(model_no, line_no, line_no, 1, size)
        cuts.append(open_cuts[model_no])
    return sorted(cuts, key=lambda made: (made.model_no, made.first_line))
