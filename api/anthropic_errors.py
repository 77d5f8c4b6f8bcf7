"""Errors below `/v1/messages` leave in the shape of Anthropic's API, wherever in the server they come from.

Source: the API's reference, "Errors"; anthropic-sdk-python `_exceptions.py` reads `error.type`, `error.message`,
`error.details.error_code` and the header `request-id`.
"""

import json
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PREFIX = "/v1/messages"
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


_TEXT = {"type": "string"}
# The same, for the OpenAPI document.
SCHEMA: dict[str, Any] = {
    "title": "AnthropicError",
    "type": "object",
    "required": ["type", "error", "request_id"],
    "properties": {
        "type": {"type": "string", "const": "error"},
        "error": {
            "type": "object",
            "required": ["type", "message"],
            "properties": {
                "type": _TEXT,
                "message": _TEXT,
                "details": {"type": "object", "properties": {"error_code": _TEXT}},
            },
        },
        "request_id": _TEXT,
    },
}


def body(status: int, error: dict[str, Any], request_id: str | None) -> dict[str, Any]:
    """Return an error of ours, `{message, code, ...}`, as Anthropic's clients expect it."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    shown: dict[str, Any] = {"type": kind, "message": error["message"]}
    if error.get("code"):
        shown["details"] = {"error_code": error["code"]}
    return {"type": "error", "error": shown, "request_id": request_id}


class AnthropicErrors:
    """Translates the errors of other layers, and gives every reply the header `request-id`. The outermost layer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(PREFIX):
            await self._app(scope, receive, send)
            return
        await self._app(scope, receive, _Translating(send).send)


class _Translating:
    """One reply on its way out. An error is held back until it is whole."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._error: Message | None = None
        self._body = b""

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["request-id"] = headers.get("x-request-id", "")
            if message["status"] >= 400:
                self._error = message
                return
        elif self._error is not None:
            self._body += message.get("body", b"")
            if not message.get("more_body"):
                await self._send_error(self._error)
            return
        await self._send(message)

    async def _send_error(self, start: Message) -> None:
        headers = MutableHeaders(scope=start)
        error = json.loads(self._body)["error"]
        content = json.dumps(body(start["status"], error, headers["request-id"])).encode()
        headers["content-length"] = str(len(content))
        await self._send(start)
        await self._send({"type": "http.response.body", "body": content})
