"""Who is logged in, that a form was sent from a page of ours, and what every answer carries."""

from collections.abc import Callable, Coroutine
from typing import Annotated, Any
from urllib.parse import quote, urlsplit

from fastapi import Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse
from fastapi.routing import APIRoute
from fastapi.security import SecurityScopes
from starlette.exceptions import HTTPException

from api import errors
from api.context import Here, admit
from api.web import rendering, session
from jobs.errors import AuthenticationFailed, PermissionDenied, PromptmillError, QuotaExceeded
from jobs.keys import Caller, Scope

LOGIN = "/ui/login"
# Nothing from elsewhere, nothing inline, in no frame. `same-origin`: with less, forms would say that they are from
# nowhere.
HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-frame-options": "DENY",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
Handler = Callable[[Request], Coroutine[Any, Any, Response]]


async def _caller(request: Request, needs: SecurityScopes, context: Here) -> Caller:
    """Return who is logged in, as a call of the API with the same key would.

    Raises:
        AuthenticationFailed: nobody.
        PermissionDenied: the key lacks a scope.
        QuotaExceeded: the project had its calls of this minute.
    """
    sessions: session.Sessions = request.app.state.sessions
    key = sessions.open(request)
    if key is None:
        raise AuthenticationFailed
    caller = await admit(context, key)
    caller.require(needs.scopes)
    return caller


BatchesReader = Annotated[Caller, Security(_caller, scopes=[Scope.BATCHES_READ])]
BatchesWriter = Annotated[Caller, Security(_caller, scopes=[Scope.BATCHES_WRITE])]
FilesReader = Annotated[Caller, Security(_caller, scopes=[Scope.FILES_READ])]
FilesWriter = Annotated[Caller, Security(_caller, scopes=[Scope.FILES_WRITE])]
RowsReader = Annotated[Caller, Security(_caller, scopes=[Scope.BATCHES_READ, Scope.FILES_READ])]
ModelsReader = Annotated[Caller, Security(_caller, scopes=[Scope.MODELS_READ])]


class Page(APIRoute):
    """A route whose errors are pages, whose forms come from here, and whose answers carry `HEADERS`."""

    def get_route_handler(self) -> Handler:
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            try:
                _require_own_form(request)
                response = await handle(request)
            except (PromptmillError, RequestValidationError, HTTPException) as error:
                response = _problem(request, error)
            response.headers.update(HEADERS)
            return response

        return handler


def _require_own_form(request: Request) -> None:
    """Go on with what changes nothing, and with forms of our own pages.

    Browsers say where a form was: `Sec-Fetch-Site` over TLS and on the machine itself, `Origin` always.

    Raises:
        PermissionDenied: it was elsewhere, or nobody says where.
    """
    if request.method == "GET":
        return
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin", "")
    host = request.headers.get("host")
    is_own = site == "same-origin" if site is not None else bool(host) and urlsplit(origin).netloc == host
    if not is_own:
        message = "This form was not sent from this site."
        raise PermissionDenied(message, code="cross_site")


def _problem(request: Request, error: Exception) -> Response:
    if isinstance(error, AuthenticationFailed):
        response = RedirectResponse(f"{LOGIN}?next={quote(_path(request), safe='/')}", status_code=303)
        session.forget(response, request)
        return response
    status, message, headers = _told(error)
    # Whoever is logged in can go on to other pages, or out.
    is_known = request.app.state.sessions.open(request) is not None
    page = rendering.render("problem.html", title=message, status=status, **({"may": {}} if is_known else {}))
    return Response(page, status, headers, media_type="text/html")


def _told(error: Exception) -> tuple[int, str, dict[str, str]]:
    """Return status, words and headers of an error."""
    if isinstance(error, RequestValidationError):
        return 400, "The form is not complete.", {}
    if isinstance(error, HTTPException):
        return error.status_code, str(error.detail), dict(error.headers or {})
    assert isinstance(error, PromptmillError)
    errors.note(error)
    if (status := errors.status_of(error)) is None:
        raise error
    more = errors.when_to_retry(error) if isinstance(error, QuotaExceeded) else {}
    return status, error.message, more


def _path(request: Request) -> str:
    """Return where to go on after the log-in: where somebody was, unless that was a form."""
    return str(request.scope["path"]) if request.method == "GET" else "/"
