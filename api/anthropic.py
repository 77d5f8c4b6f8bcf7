"""The objects of Anthropic's Message Batches API as they go over the wire, made from ours. Pure.

Source: anthropic-sdk-python `types/messages/`. Its `cancelled` has one l.
"""

from collections.abc import Iterator
from datetime import datetime
from typing import Any, Literal

import msgspec

from api import anthropic_errors
from jobs import ids
from jobs.errors import InvalidRequest, NotFound, PromptmillError, QuotaExceeded
from jobs.messages import Counted
from jobs.protocol import BatchError, Wire
from jobs.quotas import RETRY_OPEN_MS
from jobs.states import BatchStatus


class MessageBatchCounts(Wire):
    """What became of the requests. All are `processing` until the batch has ended; the sum is always their number."""

    processing: int = 0
    succeeded: int = 0
    errored: int = 0
    canceled: int = 0
    expired: int = 0


class MessageBatch(Wire):
    """A batch as a client of Anthropic's API sees it. Times are RFC 3339, UTC."""

    id: str
    type: Literal["message_batch"] = "message_batch"
    processing_status: Literal["in_progress", "canceling", "ended"]
    request_counts: MessageBatchCounts
    created_at: datetime
    expires_at: datetime
    ended_at: datetime | None
    cancel_initiated_at: datetime | None
    archived_at: datetime | None
    results_url: str | None


class MessageBatchPage(Wire):
    """One page of a listing; older ones follow with `after_id=last_id`, newer ones with `before_id=first_id`."""

    data: list[MessageBatch]
    has_more: bool
    first_id: str | None
    last_id: str | None


class MessageBatchDeleted(Wire):
    """The answer to a deletion."""

    id: str
    type: Literal["message_batch_deleted"] = "message_batch_deleted"


def page(batches: list[Counted], *, has_more: bool) -> MessageBatchPage:
    data = [message_batch(batch) for batch in batches]
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return MessageBatchPage(data=data, has_more=has_more, first_id=first, last_id=last)


def message_batch(batch: Counted) -> MessageBatch:
    name = ids.message_batch_id(batch.id)
    # A path, which the SDKs join to the address that they already use: they send their API key to this URL. The address
    # of the request, which an absolute URL would be made of, is what its Host header and a proxy say it is: with TLS
    # ending in front of us it would begin with http, and the key would travel in the clear.
    url = f"/v1/messages/batches/{name}/results" if batch.ended_at else None
    return MessageBatch(
        id=name,
        processing_status=_status(batch),
        request_counts=_counts(batch),
        created_at=batch.created_at,
        expires_at=batch.expires_at,
        ended_at=batch.ended_at,
        cancel_initiated_at=batch.cancelling_at,
        archived_at=batch.archived_at,
        results_url=url,
    )


def _status(batch: Counted) -> Literal["in_progress", "canceling", "ended"]:
    if batch.ended_at:
        return "ended"
    return "canceling" if batch.status == BatchStatus.CANCELLING else "in_progress"


def _counts(batch: Counted) -> MessageBatchCounts:
    if not batch.ended_at:
        return MessageBatchCounts(processing=batch.total)
    return MessageBatchCounts(
        succeeded=batch.completed,
        errored=batch.failed - batch.never_ran,
        canceled=batch.never_ran if batch.status == BatchStatus.CANCELLED else 0,
        expired=batch.never_ran if batch.status == BatchStatus.EXPIRED else 0,
    )


# Codes that mean something else here, and the words for them.
_WORDS = {
    "duplicate_custom_id": "Another request of the batch has the same custom_id.",
    "invalid_json_line": "Not valid JSON, or nested too deep.",
    "invalid_encoding": "Not valid UTF-8.",
}


def refusal(problem: BatchError) -> PromptmillError:
    """Return what keeps a batch from being made, with the place that the client knows it by."""
    if problem.code == "token_limit_exceeded":
        return QuotaExceeded(problem.message, code=problem.code, retry_after_ms=RETRY_OPEN_MS)
    kind = NotFound if problem.code == "model_not_found" else InvalidRequest
    place = "requests" if problem.line is None else f"requests.{problem.line - 1}"
    if problem.param:
        place += f".{problem.param.replace('body', 'params', 1)}"
    words = _WORDS.get(problem.code, problem.message.replace("'body", "'params"))
    return kind(f"{place}: {words}", code=problem.code, param=place)


class _Error(msgspec.Struct):
    message: str
    code: str | None = None


class _Failed(msgspec.Struct):
    error: _Error


class _Response(msgspec.Struct):
    status_code: int
    request_id: str
    body: msgspec.Raw


class _Row(msgspec.Struct):
    custom_id: str
    response: _Response | None
    error: _Error | None


_decode_row = msgspec.json.Decoder(_Row).decode
_decode_failed = msgspec.json.Decoder(_Failed).decode
_encode = msgspec.json.Encoder().encode
_NEVER_RAN = {"batch_cancelled": "canceled", "batch_expired": "expired"}


def results(lines: bytes) -> Iterator[bytes]:
    """Yield the results that whole lines of an output or error file stand for, each with its line end.

    The answers themselves are passed on byte for byte.
    """
    for line in lines.splitlines():
        row = _decode_row(line)
        yield _encode({"custom_id": row.custom_id, "result": _result(row)}) + b"\n"


def _result(row: _Row) -> dict[str, Any]:
    if row.response is None:
        assert row.error, "a row has one or the other"
        return {"type": _NEVER_RAN[row.error.code or ""]}
    if row.response.status_code < 300:
        return {"type": "succeeded", "message": row.response.body}
    error = msgspec.to_builtins(_decode_failed(row.response.body).error)
    shown = anthropic_errors.body(row.response.status_code, error, row.response.request_id)
    return {"type": "errored", "error": shown}
