"""The pages. What changes anything is done by the function that does it for the API."""

import secrets
from pathlib import Path as Folder
from typing import Annotated

from fastapi import APIRouter, FastAPI, Form, Path, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from sqlalchemy import Connection
from starlette.staticfiles import StaticFiles

from api.context import Context, Here, admit
from api.routes import batches as batch_calls
from api.routes import files as file_calls
from api.web import guard, rendering, session, views
from api.web.guard import BatchesReader, BatchesWriter, FilesReader, FilesWriter, ModelsReader, RowsReader
from jobs import batches, files, fleet, ids, progress, validation
from jobs.batches import NewBatch
from jobs.errors import AuthenticationFailed, InvalidRequest, QuotaExceeded
from jobs.idempotency import MAX_KEY_CHARS, Call
from jobs.keys import Caller, Scope
from jobs.protocol import BATCH_ENDPOINTS, BATCH_PURPOSE, Batch, BatchCreate, BatchError
from jobs.settings import Settings
from jobs.states import TERMINAL

router = APIRouter(route_class=guard.Page, include_in_schema=False, default_response_class=HTMLResponse)

PAGE_ROWS = 20
# Far above any line that people read; what is longer, they download.
MAX_SHOWN_BYTES = 20_000
MAX_LOGIN_CHARS = 200
FormId = Annotated[str, Form(min_length=1, max_length=MAX_KEY_CHARS)]
LineNo = Annotated[int, Path(ge=1, le=2**31 - 1)]


def install(app: FastAPI, settings: Settings) -> None:
    """Serve the pages, unless they are switched off."""
    if not settings.web.enabled:
        return
    app.state.sessions = session.Sessions(settings.web)
    app.state.bad_logins = session.BadLogins()
    app.include_router(router)
    app.mount("/ui/static", StaticFiles(directory=Folder(__file__).with_name("static")))


def _page(name: str, caller: Caller, **values: object) -> str:
    may = {scope.value: caller.may(scope) for scope in Scope}
    return rendering.render(name, may=may, form_id=secrets.token_urlsafe(16), **values)


def _seen_other(path: str) -> RedirectResponse:
    return RedirectResponse(path, status_code=303)


@router.get(guard.LOGIN)
async def show_login(next: str = "/") -> str:  # noqa: A002  the name in the URL
    return rendering.render("login.html", next=next, problem=None)


@router.post(guard.LOGIN)
async def log_in(
    request: Request,
    context: Here,
    key: Annotated[str, Form(max_length=MAX_LOGIN_CHARS)] = "",
    next: Annotated[str, Form()] = "/",  # noqa: A002
) -> Response:
    sessions: session.Sessions = request.app.state.sessions
    bad: session.BadLogins = request.app.state.bad_logins
    address = request.client.host if request.client else ""
    try:
        await _admit(context, key.strip(), bad, address)
    except (AuthenticationFailed, QuotaExceeded) as error:
        page = rendering.render("login.html", next=next, problem=error.message)
        return HTMLResponse(page, status_code=401 if isinstance(error, AuthenticationFailed) else 429)
    response = _seen_other(_own_path(next))
    session.keep(response, request, sessions.seal(key.strip()), sessions.settings.session_seconds)
    return response


async def _admit(context: Context, key: str, bad: session.BadLogins, address: str) -> None:
    """Let a good key in, whoever failed before: behind a proxy on another host all people have one address."""
    try:
        await admit(context, key)
    except AuthenticationFailed:
        bad.check(address)
        bad.note(address)
        raise


def _own_path(path: str) -> str:
    """Return a page of ours: a link could carry any address."""
    is_own = path.startswith("/ui/") and path.isascii() and path.isprintable() and "\\" not in path
    return path if is_own and path != guard.LOGIN else "/"


@router.post("/ui/logout")
async def log_out(request: Request) -> Response:
    response = _seen_other(guard.LOGIN)
    session.forget(response, request)
    return response


@router.get("/")
async def list_batches(caller: BatchesReader, context: Here, after: str | None = None, fragment: bool = False) -> str:  # noqa: FBT001, FBT002
    page, has_more = await context.reading(
        caller,
        lambda connection: batches.list_page(
            connection, caller.project_id, after=after, limit=PAGE_ROWS, show_partial=False
        ),
    )
    return _page(
        "_batches.html" if fragment else "batches.html",
        caller,
        rows=views.rows(page),
        after=after,
        older=page[-1].id if has_more else None,
        live=any(batch.status not in TERMINAL for batch in page) or after is None,
    )


@router.get("/ui/batches/{batch_id}")
async def show_batch(batch_id: str, caller: BatchesReader, context: Here, fragment: bool = False) -> str:  # noqa: FBT001, FBT002
    def read(connection: Connection) -> tuple[Batch, progress.Pace, list[progress.Failures]]:
        batch = batches.find(connection, caller.project_id, batch_id, show_partial=False)
        pace = progress.pace(connection, caller.project_id, batch_id)
        return batch, pace, progress.failures(connection, batch_id) if batch.request_counts.failed else []

    batch, pace, failures = await context.reading(caller, read)
    return _page(
        "_batch.html" if fragment else "batch.html",
        caller,
        batch=batch,
        run=views.run(batch, pace),
        failures=failures,
        problems=views.by_line(batch.errors.data) if batch.errors else [],
        downloads=views.downloads(batch),
        ended_at=views.ended_at(batch),
        may_cancel=views.may_cancel(batch),
        may_retry=views.may_retry(batch),
        live=batch.status not in TERMINAL,
    )


@router.get("/ui/batches/{batch_id}/requests/{line_no}")
async def show_request(batch_id: str, line_no: LineNo, caller: RowsReader, context: Here) -> str:
    def read(connection: Connection) -> progress.Opened:
        return progress.open_row(connection, caller.project_id, batch_id, line_no, most_bytes=MAX_SHOWN_BYTES)

    opened = await context.reading(caller, read)
    return _page("request.html", caller, batch_id=batch_id, line_no=line_no, opened=opened)


@router.post("/ui/batches")
async def create_batch(
    caller: BatchesWriter,
    context: Here,
    form_id: FormId,
    input_file_id: Annotated[str, Form()],
    endpoint: Annotated[str, Form()],
    completion_window: Annotated[str, Form()] = "24h",
) -> Response:
    asked = BatchCreate(input_file_id=input_file_id, endpoint=endpoint, completion_window=completion_window)
    batch = await batch_calls.create_batch(asked, Call(caller, "/v1/batches", key=form_id), context)
    return _seen_other(f"/ui/batches/{batch.id}")


@router.post("/ui/batches/{batch_id}/cancel")
async def cancel_batch(batch_id: str, caller: BatchesWriter, context: Here) -> Response:
    batch = await batch_calls.cancel_batch(batch_id, caller, context)
    return _seen_other(f"/ui/batches/{batch.id}")


@router.post("/ui/batches/{batch_id}/retry")
async def retry_batch(batch_id: str, caller: BatchesWriter, context: Here, form_id: FormId) -> Response:
    """Make a batch of the requests that failed, as `promptmill retry` does."""
    batch = await context.reading(
        caller, lambda connection: batches.find(connection, caller.project_id, batch_id, show_partial=False)
    )
    if batch.error_file_id is None:
        message = f"{batch.id} has not ended, or nothing of it failed."
        raise InvalidRequest(message)
    return await create_batch(
        caller, context, form_id, ids.result_file_id(batch.id, "error"), batch.endpoint, batch.completion_window
    )


@router.get("/ui/files")
async def list_files(caller: FilesReader, context: Here, after: str | None = None) -> str:
    page, has_more = await context.reading(
        caller,
        lambda connection: files.list_page(
            connection, caller.project_id, purpose=BATCH_PURPOSE, after=after, limit=PAGE_ROWS, newest_first=True
        ),
    )
    return _page("files.html", caller, files=page, after=after, older=page[-1].id if has_more else None)


@router.post("/ui/files")
async def upload_file(request: Request, caller: FilesWriter, context: Here) -> Response:
    file = await file_calls.create_file(request, Call(caller, "/v1/files"), context)
    return _seen_other(f"/ui/files/{file.id}")


@router.get("/ui/files/{file_id}")
async def show_file(file_id: str, caller: FilesReader, context: Here, endpoint: str | None = None) -> str:
    """Show a file, and what would keep a batch of it from running at this moment."""

    def read(connection: Connection) -> dict[str, object]:
        row = files.find(connection, caller.project_id, file_id)
        wire = files.to_wire(row)
        if wire.purpose != BATCH_PURPOSE:
            return {"file": wire, "requests": None, "models": [], "endpoint": None, "problems": []}
        chosen = endpoint if endpoint in BATCH_ENDPOINTS else next(iter(row.urls), None)
        new = NewBatch(row.id, chosen or "", "24h", 0)
        found = (
            validation.problems(connection, row, new, context.settings)
            if chosen in BATCH_ENDPOINTS
            else [BatchError(**problem) for problem in row.problems or ()]
        )
        return {
            "file": wire,
            "requests": row.requests,
            "models": row.models,
            "endpoint": chosen,
            "problems": views.by_line(found),
        }

    values = await context.reading(caller, read)
    return _page(
        "file.html", caller, **values, endpoints=BATCH_ENDPOINTS, most=context.settings.limits.max_reported_lines
    )


@router.get("/ui/files/{file_id}/content", response_class=Response)
async def download(file_id: str, request: Request, caller: FilesReader, context: Here) -> Response:
    asked = request.headers.get
    return await file_calls.retrieve_content(
        file_id, caller, context, asked("range"), asked("if-range"), asked("if-none-match")
    )


@router.get("/ui/workers")
async def list_workers(caller: ModelsReader, context: Here, fragment: bool = False) -> str:  # noqa: FBT001, FBT002
    memory = context.settings.retention.model_memory_seconds
    seen = await context.reading(caller, lambda connection: fleet.sightings(connection, memory_seconds=memory))
    return _page("_workers.html" if fragment else "workers.html", caller, workers=views.workers(seen), live=True)
