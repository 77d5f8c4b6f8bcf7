"""What happens around every call: an id for it, a line in the log, and bounds on what it sends."""

import asyncio
import re
import time
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import errors, notes
from jobs import ids, telemetry
from jobs.settings import Api

log = telemetry.get_logger(__name__)


# Far above any batch; files are bounded where they are read.
MAX_BODY_BYTES = 1_000_000
STREAMED = re.compile("POST (/v1/files|/v1/uploads/[^/]+/parts|/v1/messages/batches|/ui/files)")


class BodyBounds:
    """Refuses bodies while they arrive: encoded ones, large ones, and those that trickle.

    FastAPI reads a body whole, and before it asks for a key.
    """

    def __init__(self, app: ASGIApp, settings: Api) -> None:
        self._app, self._settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif refused := _refuse_headers(Headers(scope=scope)):
            await refused(scope, receive, send)
        else:
            most = None if STREAMED.fullmatch(f"{scope['method']} {scope['path']}") else MAX_BODY_BYTES
            body = _Body(receive, self._settings, most)
            await self._app(scope, body.receive, body.noting_answer(send))


def _refuse_headers(headers: Headers) -> ASGIApp | None:
    if (encoding := headers.get("content-encoding", "identity")).lower() != "identity":
        # Unpacking is how a small body becomes a large one; Accept-Encoding in the answer: RFC 9110, 15.5.16.
        message = f"Bodies with 'Content-Encoding: {encoding[:40]}' are not read. Send it as it is."
        return errors.reply(415, message, param="Content-Encoding", headers={"accept-encoding": "identity"})
    if "content-length" in headers and "transfer-encoding" in headers:
        # A proxy in front may have believed the other one: RFC 9112, 6.3.
        message = "The body has two lengths: Content-Length and Transfer-Encoding."
        return errors.reply(400, message, headers={"connection": "close"})
    return None


@dataclass
class _Body:
    """The body of one call on its way in. Once there is an answer, or the whole body, nothing is bounded any more."""

    source: Receive
    settings: Api
    most: int | None
    received: int = 0
    over: bool = False

    def __post_init__(self) -> None:
        self._seconds_left = self.settings.body_grace_seconds

    async def receive(self) -> Message:
        """Return the next piece.

        Raises:
            HTTPException: 413, the body is too large; 408, its client was too slow.
        """
        if self.over:
            return await self.source()
        message = await self._in_time()
        size = len(message.get("body", b""))
        self.received += size
        if self.most is not None and self.received > self.most:
            raise HTTPException(413, f"The body is larger than {self.most} bytes.")
        self._earn(size)
        self.over = not message.get("more_body", False)
        return message

    async def _in_time(self) -> Message:
        """Wait for the client, and for nothing else: the time that we take ourselves is not its fault."""
        started = time.monotonic()
        try:
            async with asyncio.timeout(self._seconds_left):
                return await self.source()
        except TimeoutError:
            message = "The body arrives too slowly."
            # Without it the rest would be read, and thrown away, for as long as the client likes to send.
            raise HTTPException(408, message, headers={"connection": "close"}) from None
        finally:
            self._seconds_left -= time.monotonic() - started

    def _earn(self, size: int) -> None:
        """Give time for what came, never more than at the start: a fast beginning buys no long silence."""
        earned = size / self.settings.min_body_bytes_per_second
        self._seconds_left = min(self.settings.body_grace_seconds, self._seconds_left + earned)

    def noting_answer(self, send: Send) -> Send:
        async def send_noting(message: Message) -> None:
            self.over = True
            await send(message)

        return send_noting


# What proxies number calls with, a UUID or its digits, and what we do. Anything else may be words of a client.
CALL_ID = re.compile("(req_)?[0-9a-f]{32}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


def _call_id(scope: Scope) -> str:
    """Return the id that a proxy has given the call, or a new one."""
    given = Headers(scope=scope).get("x-request-id", "")
    return given if CALL_ID.fullmatch(given) else ids.new_call_id()


class RequestIds:
    """Each call has an id: in the reply's `x-request-id`, where the SDK looks for it, and in every log line."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        call_id, started, status = _call_id(scope), time.perf_counter(), 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = call_id
            await send(message)

        with telemetry.about(request_id=call_id):
            try:
                await self._app(scope, receive, send_with_id)
            except ClientDisconnect:
                log.info("client_left")
            except Exception as error:
                if status:
                    raise
                await errors.unexpected(error)(scope, receive, send_with_id)
            finally:
                notes.note_call(call_id, scope, status, time.perf_counter() - started)
