"""`/v1/uploads`: a file in parts."""

from functools import partial

from anyio import to_thread
from fastapi import APIRouter, Request
from sqlalchemy import Connection
from starlette.concurrency import run_in_threadpool

from api import multipart
from api.context import Context, CreatesFile, FilesWriter, Here
from api.receiving import whole_or_nothing
from jobs import idempotency, uploads
from jobs.errors import InvalidRequest
from jobs.keys import Caller
from jobs.protocol import Upload, UploadComplete, UploadCreate, UploadPart

router = APIRouter(prefix="/v1/uploads", tags=["uploads"])

# The form's field that carries a part.
DATA = "data"


@router.post("")
async def create_upload(asked: UploadCreate, call: CreatesFile, context: Here) -> Upload:
    """Begin a file that is sent in parts. It is open for an hour.

    A call that is repeated, with the same Idempotency-Key or by the SDK itself, answers with the same upload.
    """
    fingerprint = idempotency.fingerprint(asked)

    def create(connection: Connection) -> str:
        make = partial(uploads.create, connection, call.caller.project_id, asked, context.settings)
        return idempotency.once(connection, call, fingerprint, make)[0]

    upload_id = await context.transaction(call.caller, create, point="create_upload")
    return await _retrieve(context, call.caller, upload_id)


@router.post(
    "/{upload_id}/parts",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "required": [DATA],
                        "properties": {DATA: {"type": "string", "format": "binary"}},
                    }
                }
            },
        }
    },
)
async def create_part(upload_id: str, request: Request, call: CreatesFile, context: Here) -> UploadPart:
    """Add bytes to an upload, in any order and at the same time as others. When this answers, they are committed."""
    project_id = call.caller.project_id
    # Before the bytes are read: nothing is stored for an upload that takes no parts.
    await context.transaction(
        call.caller, lambda connection: uploads.check_pending(connection, project_id, upload_id), point="check_upload"
    )
    part = uploads.Part(context.database, context.settings.limits, project_id, upload_id)
    async with whole_or_nothing(part):
        content_type = request.headers.get("content-type", "")
        form = await multipart.receive(request.stream(), content_type, part.feed, name=DATA)
        if form.filename is None:
            message = f"Missing required parameter: '{DATA}'."
            raise InvalidRequest(message, param=DATA, code="missing_required_parameter")
        part_id = await run_in_threadpool(part.finish, call)
    return await context.reading(call.caller, lambda connection: uploads.find_part(connection, project_id, part_id))


@router.post("/{upload_id}/complete")
async def complete_upload(upload_id: str, asked: UploadComplete, caller: FilesWriter, context: Here) -> Upload:
    """Make the file of its parts, in the order in which they are named.

    A call that is repeated answers with the same file.
    """
    limits = context.settings.limits
    join = partial(uploads.complete, context.database, limits, caller.project_id, upload_id, asked)
    # It may take minutes, and other calls need the threads that all share.
    await to_thread.run_sync(join, limiter=context.joins)
    return await _retrieve(context, caller, upload_id)


@router.post("/{upload_id}/cancel")
async def cancel_upload(upload_id: str, caller: FilesWriter, context: Here) -> Upload:
    """Give an upload up. Its parts are removed."""
    await context.transaction(
        caller, lambda connection: uploads.cancel(connection, caller.project_id, upload_id), point="cancel_upload"
    )
    return await _retrieve(context, caller, upload_id)


async def _retrieve(context: Context, caller: Caller, upload_id: str) -> Upload:
    return await context.reading(caller, lambda connection: uploads.find(connection, caller.project_id, upload_id))
