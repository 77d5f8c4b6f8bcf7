"""Every error leaves the server as `{"error": {message, type, param, code}}`; this is the one table of statuses.

The SDK builds its exceptions from that body. FastAPI's own `{"detail": ...}` would leave `e.code` and `e.param` empty.
"""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match

from jobs import db, errors, telemetry
from jobs.protocol import ErrorBody, ErrorEnvelope

log = telemetry.get_logger(__name__)

INVALID = "invalid_request_error"
MAX_QUOTED_CHARS = 200
METHODS = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
# Status, wire type and headers of each error; the first class that fits counts.
_TABLE: list[tuple[type[errors.PromptmillError], int, str, dict[str, str]]] = [
    (errors.PayloadTooLarge, 413, INVALID, {}),
    (errors.InvalidRequest, 400, INVALID, {}),
    (errors.AuthenticationFailed, 401, INVALID, {"www-authenticate": "Bearer"}),
    (errors.PermissionDenied, 403, INVALID, {}),
    (errors.QuotaExceeded, 429, "rate_limit_error", {}),
    (errors.NotFound, 404, INVALID, {}),
    # The SDK retries a 409 unless it is told that this one is final.
    (errors.StateConflict, 409, INVALID, {"x-should-retry": "false"}),
    (errors.Unavailable, 503, "server_error", {"retry-after": "5"}),
]
_TYPES = {"missing": "missing_required_parameter"}


def install(app: FastAPI) -> None:
    """Answer every error of `app` in the contract's shape."""
    app.add_exception_handler(errors.PromptmillError, _ours)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)


def reply(
    status: int,
    message: str,
    *,
    kind: str = INVALID,
    param: str | None = None,
    code: str | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    """Return an error in the contract's shape."""
    # A client's text may be quoted in it, and half a surrogate pair cannot be sent back.
    message, param = _sendable(message), None if param is None else _sendable(param)
    envelope = ErrorEnvelope(error=ErrorBody(message=message, type=kind, param=param, code=code))
    return JSONResponse(envelope.model_dump(), status_code=status, headers=headers)


def _sendable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


async def _ours(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, errors.PromptmillError)
    note(error)
    for kind, status, wire_type, headers in _TABLE:
        if isinstance(error, kind):
            more = when_to_retry(error) if isinstance(error, errors.QuotaExceeded) else {}
            return reply(
                status, error.message, kind=wire_type, param=error.param, code=error.code, headers=headers | more
            )
    return unexpected(error)


def note(error: errors.PromptmillError) -> None:
    """Log what an operator has to know of an error that a client is told."""
    if isinstance(error, errors.Unavailable):
        log.warning("unavailable", error=db.reason(error))


def status_of(error: errors.PromptmillError) -> int | None:
    """Return the status that says this error; None if nobody thought of it."""
    return next((status for kind, status, _, _ in _TABLE if isinstance(error, kind)), None)


def when_to_retry(error: errors.QuotaExceeded) -> dict[str, str]:
    """Say it as the SDK reads it: it waits and tries again by itself, unless only its user can mend this."""
    if error.retry_after_ms is None:
        return {"retry-after-ms": "60000", "retry-after": "60", "x-should-retry": "false"}
    return {"retry-after-ms": str(error.retry_after_ms), "retry-after": str(-(-error.retry_after_ms // 1_000))}


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    """Answer what FastAPI or pydantic refused with 400, naming the parameter."""
    assert isinstance(error, RequestValidationError)
    problem: dict[str, Any] = error.errors()[0]
    if problem["type"] == "json_invalid":
        return reply(400, "We could not parse the JSON body of your request.")
    param = ".".join(str(part) for part in problem["loc"][1:]) or None
    if param is None:
        return reply(400, "The body of this request must be a JSON object.", code="invalid_value")
    if problem["type"] == "missing":
        message = f"Missing required parameter: '{param}'."
    else:
        message = f"Invalid value for '{param}': {problem['msg']}."
    return reply(400, message, param=param, code=_TYPES.get(problem["type"], "invalid_value"))


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    message, code, headers = str(error.detail), None, dict(error.headers or {})
    if error.status_code == 404:
        message, code = f"Invalid URL ({request.method} {_path(request)})", "unknown_url"
    if error.status_code == 405:
        message, code = f"Not allowed to {request.method} on {_path(request)}", "method_not_supported"
        headers = {"allow": _allowed(request)}
    return reply(error.status_code, message, code=code, headers=headers)


def _path(request: Request) -> str:
    # Not of `request.url`, which the client's Host header has a part in.
    return str(request.scope["path"])[:MAX_QUOTED_CHARS]


def _allowed(request: Request) -> str:
    """Return the methods that any route takes on this path; Starlette names those of the first one."""
    return ", ".join(method for method in METHODS if _is_taken(request, method))


def _is_taken(request: Request, method: str) -> bool:
    asked = {**request.scope, "method": method}
    return any(route.matches(asked)[0] is Match.FULL for route in request.app.routes)


def unexpected(error: Exception) -> JSONResponse:
    """Return the answer to an error that nobody thought of, and log it."""
    # The message may quote a client's data: the class is all that leaves, to the log and to the client.
    log.error("unexpected_error", error=type(error).__name__, exc_info=error)
    return reply(500, "The server had an error while processing your request.", kind="server_error")
