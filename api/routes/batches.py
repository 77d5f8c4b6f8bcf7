"""`/v1/batches`: create, list, read, cancel."""

import time
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query
from sqlalchemy import Connection

from api import batch_rules, notes, openapi
from api.context import BatchesReader, BatchesWriter, Context, CreatesBatch, Here
from jobs import batches, idempotency
from jobs.keys import Caller
from jobs.protocol import Batch, BatchCreate, Page

router = APIRouter(prefix="/v1/batches", tags=["batches"])


@router.post("")
async def create_batch(asked: BatchCreate, call: CreatesBatch, context: Here) -> Batch:
    """Create a batch. When this answers, the batch is committed, and so is everything that is to be run for it.

    A call that is repeated, with the same Idempotency-Key or by the SDK itself, answers with the same batch.
    """
    new = batch_rules.check(asked, any_window=context.settings.limits.any_completion_window)
    fingerprint = idempotency.fingerprint(asked)

    def create(connection: Connection) -> tuple[str, bool]:
        make = partial(batches.create, connection, call.caller.project_id, new, context.settings)
        return idempotency.once(connection, call, fingerprint, make)

    started = time.perf_counter()
    batch_id, is_new = await context.transaction(call.caller, create, point="create_batch")
    seconds = time.perf_counter() - started
    if is_new:
        # Redis may be slow or away, and nothing depends on it.
        context.dispatcher.hint_later(batch_id)
    batch = await _retrieve(context, call.caller, batch_id)
    if is_new:
        notes.note_created(batch_id, batch.status, seconds)
    return batch


@router.get("")
async def list_batches(
    caller: BatchesReader,
    context: Here,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> Page[Batch]:
    """List the project's batches, newest first."""
    show_partial = context.settings.api.show_partial_output
    data, has_more = await context.reading(
        caller,
        lambda connection: batches.list_page(
            connection, caller.project_id, after=after, limit=limit, show_partial=show_partial
        ),
    )
    return Page.of(data, has_more=has_more)


@router.get("/{batch_id}")
async def retrieve_batch(batch_id: str, caller: BatchesReader, context: Here) -> Batch:
    """Describe a batch. Its counts are exact."""
    return await _retrieve(context, caller, batch_id)


@router.post("/{batch_id}/cancel", responses=openapi.answers(409))
async def cancel_batch(batch_id: str, caller: BatchesWriter, context: Here) -> Batch:
    """Cancel a batch. What has finished is kept."""
    await context.transaction(
        caller, lambda connection: batches.cancel(connection, caller.project_id, batch_id), point="cancel_batch"
    )
    return await _retrieve(context, caller, batch_id)


async def _retrieve(context: Context, caller: Caller, batch_id: str) -> Batch:
    show_partial = context.settings.api.show_partial_output
    return await context.reading(
        caller, lambda connection: batches.find(connection, caller.project_id, batch_id, show_partial=show_partial)
    )
