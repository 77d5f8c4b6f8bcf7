"""What a run would ask for: every request is rendered and counted, none is sent."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from client import estimating
from client.estimating import Estimate
from client.presets import runs
from client.presets.job import Body, Job
from client.tables import Table
from jobs.settings import Worker


@dataclass(frozen=True)
class Rehearsal:
    """What came of it."""

    model: str
    rows: int
    requests: Estimate
    first_prompt: str | None
    """Of the first row that has a text."""

    def document(self) -> dict[str, Any]:
        """Return it as one object, in which `rows` are those of the table."""
        counted = {"model": self.model, "rows": self.rows, "requests": self.requests.rows}
        return {**asdict(self.requests), **counted, "first_prompt": self.first_prompt}


class _Rendering:
    """The bodies of all requests; how many rows they came from, and the first of them, when they were read."""

    def __init__(self, table: Table, job: Job) -> None:
        self._table, self._job = table, job
        self.rows = 0
        self.first: Body | None = None

    def __iter__(self) -> Iterator[Body]:
        for row, bodies in runs.rendered(self._table, self._job):
            self.rows = row
            for _, body in bodies:
                self.first = self.first or body
                yield body


def rehearse(table: Table, job: Job, model: str, worker: Worker | None) -> Rehearsal:
    """Render and count all requests.

    Args:
        table: what is read.
        job: what is asked about its rows.
        model: whom it would ask.
        worker: of a profile, for its tokenizer and the time.

    Raises:
        InvalidRequest: a row cannot be read, or its prompt cannot be made.
    """
    rendering = _Rendering(table, job)
    count, counted_by = estimating.counter(None, worker)
    made = estimating.make(rendering, count, counted_by, None, worker)
    first = None if rendering.first is None else str(rendering.first["messages"][-1]["content"])
    return Rehearsal(model, rendering.rows, made, first)
