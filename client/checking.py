"""What a server would find wrong with a file of requests, found without one: the same checks, codes and messages."""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from jobs import validation
from jobs.errors import InvalidRequest
from jobs.jsonl import Lines, Summary
from jobs.lines import BOM
from jobs.protocol import BATCH_ENDPOINTS, BatchError
from jobs.settings import Limits

PIECE_BYTES = 1_000_000
# The server lists so many; here nothing has to be sent.
ALL = 1_000_000_000


class _Url(msgspec.Struct):
    url: str


_decode = msgspec.json.Decoder(_Url).decode


class _Urls:
    """Notes which lines are for another endpoint than the first; of all others nothing is kept."""

    def __init__(self, endpoint: str | None) -> None:
        self.endpoint = endpoint
        self.elsewhere: dict[int, bool] = {}
        """Lines for another endpoint, and whether they are requests."""

    def add(
        self, line_no: int, custom_id: str | None, content: bytes, end: bytes = b"", *, model_no: int | None = None
    ) -> None:
        del end, model_no
        try:
            url = _decode(content.removeprefix(BOM)).url
        except msgspec.MsgspecError:
            return
        self.endpoint = self.endpoint or url
        if url != self.endpoint:
            self.elsewhere[line_no] = custom_id is not None


class Report(msgspec.Struct):
    """What was found."""

    endpoint: str | None
    requests: int
    models: list[str]
    problems: list[BatchError]


def check(path: Path, endpoint: str | None, limits: Limits) -> Report:
    """Return everything that keeps the file from running, in line order.

    Whether somebody serves its models only a server knows.

    Args:
        path: a file of requests, JSONL.
        endpoint: what the batch is for; None for the URL of the first line.
        limits: those of the server, as far as they are known.
    """
    urls = _Urls(endpoint)
    reader = Lines(urls, limits.model_copy(update={"max_reported_lines": ALL}))
    try:
        for piece in _pieces(path, limits):
            reader.feed(piece)
        summary = reader.end()
    except InvalidRequest as error:
        # The server takes no such file.
        line = 1 if error.code == "invalid_file_format" else None
        problem = BatchError(code=error.code or "", message=error.message, param=error.param, line=line)
        return Report(urls.endpoint, 0, [], [problem])
    problems = sorted(_problems(summary, urls), key=lambda each: each.line or 0)
    return Report(urls.endpoint, summary.requests, list(summary.models), problems)


def _pieces(path: Path, limits: Limits) -> Iterator[bytes]:
    if path.stat().st_size > limits.max_file_bytes:
        message = f"The file is larger than {limits.max_file_bytes} bytes."
        raise InvalidRequest(message, param="file", code="file_too_large")
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            yield piece


def _problems(summary: Summary, urls: _Urls) -> Iterator[BatchError]:
    if urls.endpoint is not None and urls.endpoint not in BATCH_ENDPOINTS:
        listed = ", ".join(f"'{each}'" for each in BATCH_ENDPOINTS)
        message = f"Invalid value: '{urls.endpoint}'. Supported values are: {listed}."
        yield BatchError(code="invalid_value", message=message, param="endpoint")
    for problem in summary.problems:
        # A prompt is judged by the line's own URL; if that is not the batch's, that is the problem.
        if problem.param in validation.PROMPTS and problem.line in urls.elsewhere:
            yield validation.invalid_url(problem.line)
        else:
            yield problem
    yield from (validation.invalid_url(line_no) for line_no, is_request in urls.elsewhere.items() if is_request)
