"""`/v1/messages/batches`: Anthropic's Message Batches, a second door to the same jobs."""

import time
from collections.abc import Iterator
from contextlib import closing
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import StreamingResponse
from sqlalchemy import Connection, Engine
from starlette.concurrency import run_in_threadpool

from api import anthropic, inline, notes
from api.anthropic import MessageBatch, MessageBatchDeleted, MessageBatchPage
from api.context import (
    BatchesReader,
    BatchesWriter,
    Context,
    CreatesMessages,
    Here,
    MessagesReader,
    MessagesWriter,
)
from api.receiving import whole_or_nothing
from jobs import batches, content, ids, messages, windows
from jobs.batches import NewBatch
from jobs.errors import Unavailable
from jobs.idempotency import Call
from jobs.ingest import Ingest
from jobs.keys import Caller
from jobs.protocol import MESSAGES, BatchError
from jobs.states import BatchStatus

router = APIRouter(prefix="/v1/messages/batches", tags=["message batches"])

FILENAME = "message_batch.jsonl"


@router.post(
    "",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {
                        "type": "object",
                        "required": ["requests"],
                        "properties": {
                            "requests": {
                                "type": "array",
                                "minItems": 1,
                                "items": {
                                    "type": "object",
                                    "required": ["custom_id", "params"],
                                    "properties": {"custom_id": {"type": "string"}, "params": {"type": "object"}},
                                },
                            }
                        },
                    }
                }
            },
        }
    },
)
async def create_message_batch(request: Request, call: CreatesMessages, context: Here) -> MessageBatch:
    """Create a batch from the requests in the body. When this answers, they and the batch are committed.

    One request that no batch could run refuses the call, and nothing is left of it. A call that is repeated, with the
    same Idempotency-Key or by the SDK itself, answers with the same batch.
    """
    limits = context.settings.limits
    ingest = Ingest(context.database, limits, call.caller.project_id, refuse=_refuse)
    async with whole_or_nothing(ingest):
        await inline.receive(
            request.stream(), ingest.feed, max_bytes=limits.max_file_bytes, max_request_bytes=limits.max_line_bytes
        )
        batch_id = await run_in_threadpool(_finish, context, ingest, call)
    context.dispatcher.hint_later(batch_id)
    return await _retrieve(context, call.caller, batch_id)


def _refuse(problem: BatchError) -> None:
    raise anthropic.refusal(problem)


def _finish(context: Context, ingest: Ingest, call: Call) -> str:
    def create(connection: Connection, file_id: str) -> str:
        seconds = windows.seconds(windows.STANDARD, any_window=False)
        new = NewBatch(file_id, MESSAGES, windows.STANDARD, seconds)
        batch_id = batches.create(connection, call.caller.project_id, new, context.settings)
        made = batches.find(connection, call.caller.project_id, batch_id, show_partial=False)
        if made.errors:
            _refuse(made.errors.data[0])
        new_ids.append(batch_id)
        return batch_id

    # Empty if the call was made before.
    new_ids: list[str] = []
    started = time.perf_counter()
    batch_id = ingest.finish(call, filename=FILENAME, purpose="batch", expires_after_seconds=None, then=create)
    if batch_id in new_ids:
        notes.note_created(batch_id, BatchStatus.IN_PROGRESS, time.perf_counter() - started)
    return batch_id


@router.get("")
async def list_message_batches(
    caller: BatchesReader,
    context: Here,
    after_id: str | None = None,
    before_id: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 20,
) -> MessageBatchPage:
    """List the project's message batches, newest first."""
    after, before = (each and _batch_id(each) for each in (after_id, before_id))
    data, has_more = await context.reading(
        caller,
        lambda connection: messages.list_page(connection, caller.project_id, after=after, before=before, limit=limit),
    )
    return anthropic.page(data, has_more=has_more)


def _batch_id(message_batch_id: str) -> str:
    if (batch_id := ids.parse_message_batch_id(message_batch_id)) is None:
        raise messages.not_found(message_batch_id)
    return batch_id


# After `caller` in every signature: who has no key learns nothing about ids.
BatchId = Annotated[str, Depends(_batch_id)]


@router.get("/{message_batch_id}")
async def retrieve_message_batch(caller: BatchesReader, batch_id: BatchId, context: Here) -> MessageBatch:
    """Describe a batch. What became of its requests is told when it has ended."""
    return await _retrieve(context, caller, batch_id)


@router.post("/{message_batch_id}/cancel")
async def cancel_message_batch(caller: BatchesWriter, batch_id: BatchId, context: Here) -> MessageBatch:
    """Cancel a batch. What has finished is kept."""

    def cancel(connection: Connection) -> None:
        messages.find(connection, caller.project_id, batch_id)
        batches.cancel(connection, caller.project_id, batch_id)

    await context.transaction(caller, cancel, point="cancel_message_batch")
    return await _retrieve(context, caller, batch_id)


@router.delete("/{message_batch_id}")
async def delete_message_batch(caller: MessagesWriter, batch_id: BatchId, context: Here) -> MessageBatchDeleted:
    """Delete a batch that has ended, with its requests and its results."""
    await context.transaction(
        caller,
        lambda connection: messages.delete(connection, caller.project_id, batch_id),
        point="delete_message_batch",
    )
    return MessageBatchDeleted(id=ids.message_batch_id(batch_id))


@router.get("/{message_batch_id}/results", response_class=StreamingResponse)
async def retrieve_message_batch_results(caller: MessagesReader, batch_id: BatchId, context: Here) -> StreamingResponse:
    """Stream the results of a batch that has ended as JSONL: those that succeeded, then the others."""
    results = await context.reading(
        caller, lambda connection: messages.results_of(connection, caller.project_id, batch_id)
    )
    return StreamingResponse(_stream(context.database, results), media_type="application/x-jsonl")


def _stream(engine: Engine, results: messages.Results) -> Iterator[bytes]:
    missing = results.lines
    for source in results.sources:
        with closing(content.stream(engine, source)) as pages:
            for page in pages:
                lines = list(anthropic.results(page))
                missing -= len(lines)
                yield b"".join(lines)
    if missing:
        # Deleted on the way. A reply without a length that is broken off does not look whole.
        message = "The results were deleted while they were read."
        raise Unavailable(message)


async def _retrieve(context: Context, caller: Caller, batch_id: str) -> MessageBatch:
    found = await context.reading(caller, lambda connection: messages.find(connection, caller.project_id, batch_id))
    return anthropic.message_batch(found)
