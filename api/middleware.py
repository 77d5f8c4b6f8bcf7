"""What happens around every call: an id for it, and a line in the log."""

import time

import structlog
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import errors
from jobs import ids, telemetry

log = telemetry.get_logger(__name__)


# Far above any batch; files are bounded where they are read.
MAX_BODY_BYTES = 1_000_000
UPLOADS = (("POST", "/v1/files"), ("POST", "/v1/messages/batches"))


class BodyLimit:
    """Refuses large bodies while they arrive: FastAPI reads them whole, and before it asks for a key."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or (scope["method"], scope["path"]) in UPLOADS:
            await self._app(scope, receive, send)
            return
        received, answered = 0, False

        async def receive_some() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > MAX_BODY_BYTES and not answered:
                raise HTTPException(413, f"The body is larger than {MAX_BODY_BYTES} bytes.")
            return message

        async def send_noting(message: Message) -> None:
            nonlocal answered
            answered = True
            await send(message)

        await self._app(scope, receive_some, send_noting)


class RequestIds:
    """Gives each call an id: in the reply's `x-request-id`, where the SDK looks for it, and in every log line."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        call_id, started, status = ids.new_call_id(), time.perf_counter(), 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = call_id
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=call_id):
            try:
                await self._app(scope, receive, send_with_id)
            except ClientDisconnect:
                log.info("client_left")
            except Exception as error:
                if status:
                    raise
                await errors.unexpected(error)(scope, receive, send_with_id)
            finally:
                _log(scope, status, time.perf_counter() - started)


def _log(scope: Scope, status: int, seconds: float) -> None:
    # The route's pattern, not the path: a path may hold anything a client likes to write.
    route = getattr(scope.get("route"), "path", None)
    log.info("call", method=scope["method"], route=route, status=status, ms=round(seconds * 1000, 1))
