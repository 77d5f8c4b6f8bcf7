"""`/v1/files`: upload, list, read, delete."""

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from api import errors, multipart, openapi, ranges
from api.context import Context, CreatesFile, FilesReader, FilesWriter, Here
from api.receiving import whole_or_nothing
from jobs import content, files
from jobs.errors import InvalidRequest
from jobs.idempotency import Call
from jobs.ingest import Ingest
from jobs.keys import Caller
from jobs.protocol import MAX_LIFE_SECONDS, MIN_LIFE_SECONDS, PURPOSES, File, FileDeleted, Page

router = APIRouter(prefix="/v1/files", tags=["files"])

ORDER = "It was taken for requests of a batch: for another purpose send 'purpose' before 'file'."
# Spelt by the SDK with brackets, as nested form fields are.
ANCHOR, SECONDS = "expires_after[anchor]", "expires_after[seconds]"
_BYTES: dict[str, Any] = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_CONTENT: dict[int | str, dict[str, Any]] = {
    200: {"description": "The file.", "content": _BYTES},
    206: {"description": "The bytes that `Range` asks for.", "content": _BYTES},
    304: {"description": "`If-None-Match` names the file as it is."},
    **openapi.answers(416),
}


@router.post(
    "",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "required": ["file", "purpose"],
                        "dependentRequired": {ANCHOR: [SECONDS], SECONDS: [ANCHOR]},
                        "properties": {
                            "file": {"type": "string", "format": "binary"},
                            "purpose": {"type": "string", "enum": list(PURPOSES)},
                            ANCHOR: {"type": "string", "enum": ["created_at"]},
                            SECONDS: {"type": "integer", "minimum": MIN_LIFE_SECONDS, "maximum": MAX_LIFE_SECONDS},
                        },
                    }
                }
            },
        }
    },
)
async def create_file(request: Request, call: CreatesFile, context: Here) -> File:
    """Upload a file: requests as JSONL for a batch, any bytes for another purpose. Its bytes are committed afterwards.

    `purpose` comes before `file`, as the SDK sends it; a file that comes first is taken for a batch's.

    A call that is repeated, with the same Idempotency-Key or by the SDK itself, answers with the same file.
    """
    ingest = Ingest(context.database, context.settings.limits, call.caller.project_id)
    async with whole_or_nothing(ingest):
        form = await _receive(request, ingest)
        file_id = await run_in_threadpool(_finish, ingest, call, form)
    return await _retrieve(context, call.caller, file_id)


async def _receive(request: Request, ingest: Ingest) -> multipart.Form:
    before: multipart.Fields = {}

    def begin(fields: multipart.Fields) -> None:
        before.update(fields)
        if "purpose" in fields:
            ingest.expect(fields["purpose"])

    content_type = request.headers.get("content-type", "")
    try:
        return await multipart.receive(request.stream(), content_type, ingest.feed, on_begin=begin)
    except InvalidRequest as error:
        if error.param != "file" or "purpose" in before:
            raise
        # It may be no file of requests, and whose client says so too late.
        raise type(error)(f"{error.message} {ORDER}", code=error.code, param=error.param) from error


def _finish(ingest: Ingest, call: Call, form: multipart.Form) -> str:
    if form.filename is None:
        message = "Missing required parameter: 'file'."
        raise InvalidRequest(message, param="file", code="missing_required_parameter")
    purpose = form.fields.get("purpose")
    if purpose is None:
        message = "Missing required parameter: 'purpose'."
        raise InvalidRequest(message, param="purpose", code="missing_required_parameter")
    return ingest.finish(call, filename=form.filename, purpose=purpose, expires_after_seconds=_life(form.fields))


def _life(fields: dict[str, str]) -> int | None:
    if ANCHOR not in fields and SECONDS not in fields:
        return None
    if fields.get(ANCHOR) != "created_at":
        message = "Invalid value: 'expires_after.anchor' must be 'created_at'."
        raise InvalidRequest(message, param="expires_after.anchor", code="invalid_value")
    seconds = fields.get(SECONDS, "")
    if not re.fullmatch(r"[0-9]{1,10}", seconds) or not MIN_LIFE_SECONDS <= int(seconds) <= MAX_LIFE_SECONDS:
        message = f"'expires_after.seconds' must be an integer from {MIN_LIFE_SECONDS} to {MAX_LIFE_SECONDS}."
        raise InvalidRequest(message, param="expires_after.seconds", code="invalid_value")
    return int(seconds)


@router.get("")
async def list_files(
    caller: FilesReader,
    context: Here,
    purpose: str | None = None,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
) -> Page[File]:
    """List the project's files, newest first unless asked otherwise."""
    data, has_more = await context.reading(
        caller,
        lambda connection: files.list_page(
            connection, caller.project_id, purpose=purpose, after=after, limit=limit, newest_first=order == "desc"
        ),
    )
    return Page.of(data, has_more=has_more)


@router.get("/{file_id}")
async def retrieve_file(file_id: str, caller: FilesReader, context: Here) -> File:
    """Describe a file. The output and error files of a running batch are described as far as they are written."""
    return await _retrieve(context, caller, file_id)


async def _retrieve(context: Context, caller: Caller, file_id: str) -> File:
    return await context.reading(
        caller, lambda connection: files.to_wire(files.find(connection, caller.project_id, file_id))
    )


@router.delete("/{file_id}", responses=openapi.answers(409))
async def delete_file(file_id: str, caller: FilesWriter, context: Here) -> FileDeleted:
    """Delete a file. A batch that reads it runs on with what it read from."""
    await context.transaction(
        caller, lambda connection: files.mark_deleted(connection, caller.project_id, file_id), point="delete_file"
    )
    return FileDeleted(id=file_id)


@router.get("/{file_id}/content", response_class=StreamingResponse, responses=_CONTENT)
async def retrieve_content(
    file_id: str,
    caller: FilesReader,
    context: Here,
    bytes_range: Annotated[str | None, Header(alias="range")] = None,
    if_range: Annotated[str | None, Header()] = None,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """Stream the bytes of a file: an input file as it was sent, a result file in input order.

    One range of bytes may be asked for, unless the file is still being written.
    """
    row = await context.reading(caller, lambda connection: files.find(connection, caller.project_id, file_id))
    source = content.Source.of(row, caller.project_id)
    headers = _headers(row.filename)
    if not row.is_final:
        return _stream(content.stream(context.database, source), headers)
    # A file never changes, so its id is as good as a hash. It says its length: a download that ends early, its file
    # deleted on the way say, does not look whole.
    headers |= {"etag": f'"{row.id}"', "accept-ranges": "bytes", "content-length": str(row.bytes)}
    if if_none_match in (headers["etag"], "*"):
        return Response(status_code=304, headers={"etag": headers["etag"]})
    try:
        wanted = ranges.parse(bytes_range, row.bytes) if if_range in (None, headers["etag"]) else None
    except ranges.Unsatisfiable:
        return errors.reply(
            416,
            "The range is beyond the end of the file.",
            param="Range",
            headers={"content-range": f"bytes */{row.bytes}"},
        )
    if wanted is None:
        return _stream(_whole(context, source, row.sha256), headers)
    headers |= {"content-length": str(wanted.length), "content-range": wanted.content_range(row.bytes)}
    return _stream(content.stream_range(context.database, source, wanted.start, wanted.length), headers, status=206)


def _whole(context: Context, source: content.Source, sha256: bytes | None) -> Iterator[bytes]:
    """Return the bytes of a file, checked against the hash of its upload; result files are rows and have none."""
    pieces = content.stream(context.database, source)
    return pieces if sha256 is None else content.checked(pieces, bytes(sha256))


def _headers(filename: str) -> dict[str, str]:
    return {
        "content-disposition": f"attachment; filename*=UTF-8''{quote(filename, safe='')}",
        "x-content-type-options": "nosniff",
    }


def _stream(body: Iterator[bytes], headers: dict[str, str], status: int = 200) -> StreamingResponse:
    return StreamingResponse(body, status_code=status, media_type="application/octet-stream", headers=headers)
