"""Reads a file of requests as it arrives: cut at line feeds, each line checked, and what the file holds summed up."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from jobs import embedding_inputs, lines
from jobs.errors import InvalidRequest
from jobs.protocol import BatchError
from jobs.settings import Limits

# A file with more different values than this is not valid for any batch; the summary need not grow further.
MAX_DISTINCT = 100
# Lines beyond two for each request that a file may have.
SPARE_LINES = 1_000


@dataclass
class Summary:
    """What a batch asks about its file; empty for a file that is no list of requests."""

    requests: int = 0
    urls: set[str] = field(default_factory=set)
    models: dict[str, int] = field(default_factory=dict)
    """Each model and its number, from 0, in the order of their first lines."""
    problems: list[BatchError] = field(default_factory=list)


class Sink(Protocol):
    """Takes the lines, `jobs.blocks.Blocks` for one."""

    def add(
        self, line_no: int, custom_id: str | None, content: bytes, end: bytes = b"", *, model_no: int | None = None
    ) -> None: ...


class Lines:
    """The lines of one file, a row each. `feed` every chunk in order, then `end`. `refuse` gets what is wrong first."""

    def __init__(self, blocks: Sink, limits: Limits, refuse: Callable[[BatchError], None] | None = None) -> None:
        self._blocks, self._limits, self._refuse = blocks, limits, refuse
        self._sum = Summary()
        self._line_no = 0
        self._first_lines: dict[str, int] = {}
        self._embedding_inputs = 0
        # The line that has no end yet, in pieces: a long one is put together once.
        self._open: list[bytes] = []
        self._open_bytes = 0

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the file.

        Raises:
            InvalidRequest: the first line is not JSON, or a line is longer than `limits.max_line_bytes`.
        """
        head, *complete = chunk.split(b"\n")
        self._open.append(head)
        self._open_bytes += len(head)
        self._check_length(self._open_bytes, self._line_no + 1)
        for following in complete:
            self._line(self._take_open(), b"\n")
            self._open, self._open_bytes = [following], len(following)

    def end(self) -> Summary:
        """Take what is left as the last line; return what the file holds.

        Raises:
            InvalidRequest: the file holds no request.
        """
        if self._open_bytes:
            self._line(self._take_open(), b"")
        if not self._sum.requests:
            message = "Invalid file format for Batch API. Must be .jsonl: the file is empty."
            raise InvalidRequest(message, param="file", code="empty_file")
        return self._sum

    def _line(self, content: bytes, end: bytes) -> None:
        self._line_no += 1
        self._check_count()
        self._check_length(len(content), self._line_no)
        custom_id, model_no = (None, None) if lines.is_blank(content) else self._request(content)
        self._blocks.add(self._line_no, custom_id, content, end, model_no=model_no)

    def _check_count(self) -> None:
        # Blank lines are rows too, and a row costs far more than the one byte that it holds.
        most = 2 * self._limits.max_requests + SPARE_LINES
        if self._line_no > most:
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

    def _request(self, content: bytes) -> tuple[str | None, int | None]:
        """Check one request; return its id and the number of its model. Of a bad one the summary has the problem."""
        self._sum.requests += 1
        if self._sum.requests > self._limits.max_requests:
            self._too_many()
            return None, None
        if self._line_no == 1:
            content = content.removeprefix(lines.BOM)
        try:
            line = lines.parse(content, max_custom_id_chars=self._limits.max_custom_id_chars)
            self._note(line)
        except lines.LineProblem as problem:
            self._problem(problem)
            return None, None
        return line.custom_id, self._sum.models[line.body.model]

    def _note(self, line: lines.Line) -> None:
        first = self._first_lines.setdefault(line.custom_id, self._line_no)
        if first != self._line_no:
            message = f"Duplicate custom_id: the same value is on line {first}."
            raise lines.LineProblem("duplicate_custom_id", message, "custom_id")
        if len(self._sum.urls) < MAX_DISTINCT:
            self._sum.urls.add(line.url)
        self._number(line.body.model)
        self._count_inputs(line)

    def _number(self, model: str) -> None:
        """Give a model its number."""
        known = self._sum.models
        if model not in known and len(known) == MAX_DISTINCT:
            message = f"The requests of a batch may use at most {MAX_DISTINCT} models."
            raise lines.LineProblem("model_mismatch", message, "body.model")
        known.setdefault(model, len(known))

    def _count_inputs(self, line: lines.Line) -> None:
        most, before = self._limits.max_embedding_inputs, self._embedding_inputs
        self._embedding_inputs += embedding_inputs.count(line)
        if before <= most < self._embedding_inputs:
            message = f"The file has more than {most} embedding inputs."
            self._keep(BatchError(code="too_many_tasks", message=message, param="body.input"))

    def _keep(self, problem: BatchError) -> None:
        if self._refuse is not None:
            self._refuse(problem)
        self._sum.problems.append(problem)

    def _problem(self, problem: lines.LineProblem) -> None:
        if self._refuse is not None:
            self._refuse(problem.at(self._line_no))
        if self._sum.requests == 1 and problem.code == "invalid_json_line":
            message = (
                "Invalid file format for Batch API. Must be .jsonl, one JSON object on each line. "
                f"Line {self._line_no}: {problem.message}"
            )
            raise InvalidRequest(message, param="file", code="invalid_file_format")
        if len(self._sum.problems) < self._limits.max_reported_lines:
            self._sum.problems.append(problem.at(self._line_no))

    def _too_many(self) -> None:
        if self._sum.requests == self._limits.max_requests + 1:
            message = f"The file has more than {self._limits.max_requests} requests."
            self._keep(BatchError(code="too_many_tasks", message=message))
