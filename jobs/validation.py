"""What keeps a batch from running, found before anything does. The messages are the contract's."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgspec
from sqlalchemy import Connection, Row, select

from jobs import fleet
from jobs.lines import BOM, PROMPT_OF
from jobs.protocol import BATCH_PURPOSE, BatchError
from jobs.settings import Settings
from jobs.tables import lines

if TYPE_CHECKING:
    from jobs.batches import NewBatch


def problems(connection: Connection, source: Row[Any] | None, new: "NewBatch", settings: Settings) -> list[BatchError]:
    """Return everything that keeps the batch from running, in line order."""
    if source is None:
        message = f"Cannot find file {new.input_file_id}, or your project does not have access to it."
        return [BatchError(code="invalid_request", message=message, param="file_id")]
    if source.purpose != BATCH_PURPOSE:
        message = f"The purpose of file {new.input_file_id} is '{source.purpose}', not '{BATCH_PURPOSE}'."
        return [BatchError(code="invalid_request", message=message, param="file_id")]
    found = _with_their_urls(connection, source, new.endpoint)
    may_mix = len(source.models) == 1 or _are_served_together(connection, source, new.endpoint, settings)
    if source.urls != [new.endpoint] or not may_mix:
        most = settings.limits.max_reported_lines
        found += _mismatches(connection, source.id, new.endpoint, most, may_mix=may_mix)
    if len(source.models) == 1:
        found += _not_served(connection, source, new.endpoint, settings)
    found.sort(key=lambda problem: problem.line or 0)
    return found[: settings.limits.max_reported_lines]


class _Target(msgspec.Struct):
    class Body(msgspec.Struct):
        model: str

    url: str
    body: Body


class _Url(msgspec.Struct):
    url: str


_decode_target = msgspec.json.Decoder(_Target).decode
_decode_url = msgspec.json.Decoder(_Url).decode
# What a line may lack by its own URL.
PROMPTS = {f"body.{name}" for groups in PROMPT_OF.values() for names in groups for name in names}


def _are_served_together(connection: Connection, source: Row[Any], endpoint: str, settings: Settings) -> bool:
    """Tell whether one worker serves all models of the file at this endpoint, and its lines have their numbers."""
    memory = settings.retention.model_memory_seconds
    if endpoint not in fleet.served_endpoints(connection, source.models, memory_seconds=memory):
        return False
    statement = select(lines.c.model_no).where(lines.c.file_id == source.id, lines.c.custom_id.is_not(None))
    # One process wrote all lines. One of an earlier release gave none of them a number.
    return connection.execute(statement.order_by(lines.c.line_no).limit(1)).scalar_one_or_none() is not None


def _mismatches(connection: Connection, file_id: str, endpoint: str, most: int, *, may_mix: bool) -> list[BatchError]:
    """Read the lines again, only when the file's summary says that some do not fit; return `most` problems at most.

    With `may_mix` it is no problem that lines name different models.
    """
    statement = (
        select(lines.c.line_no, lines.c.content)
        .where(lines.c.file_id == file_id, lines.c.custom_id.is_not(None))
        .order_by(lines.c.line_no)
        .execution_options(yield_per=100)
    )
    problems: list[BatchError] = []
    first_model = None
    with connection.execute(statement) as rows:
        for line_no, content in rows:
            target = _decode_target(bytes(content).removeprefix(BOM))
            first_model = first_model or target.body.model
            problems += _misfits(target, line_no, endpoint, target.body.model if may_mix else first_model)
            if len(problems) >= most:
                break
    return problems


def _with_their_urls(connection: Connection, source: Row[Any], endpoint: str) -> list[BatchError]:
    """Return the problems found at upload.

    A prompt was judged by the line's own URL; if that is not the batch's endpoint, that is the problem.
    """
    found = [BatchError(**problem) for problem in source.problems or ()]
    doubtful = [problem.line for problem in found if problem.param in PROMPTS]
    if not doubtful:
        return found
    statement = select(lines.c.line_no, lines.c.content)
    rows = connection.execute(statement.where(lines.c.file_id == source.id, lines.c.line_no.in_(doubtful)))
    elsewhere = {row.line_no for row in rows if _decode_url(bytes(row.content).removeprefix(BOM)).url != endpoint}
    return [invalid_url(problem.line) if problem.line in elsewhere else problem for problem in found]


def invalid_url(line_no: int | None) -> BatchError:
    """Return the problem of a line that is for another endpoint than its batch."""
    message = "The URL provided for this request does not match the batch endpoint."
    return BatchError(code="invalid_url", message=message, param="url", line=line_no)


def _misfits(target: _Target, line_no: int, endpoint: str, model: str) -> Iterator[BatchError]:
    if target.url != endpoint:
        yield invalid_url(line_no)
    if target.body.model != model:
        message = (
            "All requests of a batch must use one model, or models that one worker serves together; "
            f"the first line's is '{model}'."
        )
        yield BatchError(code="model_mismatch", message=message, param="body.model", line=line_no)


def _not_served(connection: Connection, source: Row[Any], endpoint: str, settings: Settings) -> list[BatchError]:
    """Return a problem for each line, when nobody serves the file's one model at this endpoint."""
    (model,) = source.models
    memory = settings.retention.model_memory_seconds
    served = fleet.served_endpoints(connection, source.models, memory_seconds=memory)
    if endpoint in served:
        return []
    statement = (
        select(lines.c.line_no)
        .where(lines.c.file_id == source.id, lines.c.custom_id.is_not(None))
        .order_by(lines.c.line_no)
        .limit(settings.limits.max_reported_lines)
    )
    message = f"The provided model '{model}' is not supported by the Batch API."
    if served:
        message = f"The provided model '{model}' is not served at '{endpoint}', only at: {', '.join(sorted(served))}."
    return [
        BatchError(code="model_not_found", message=message, param="body.model", line=line_no)
        for line_no in connection.execute(statement).scalars()
    ]
