"""One line of an input file: what it must hold, and what is wrong with it. Pure.

A valid line costs one typed msgspec decode. Only a line that fails it is looked at again,
slowly, to name the parameter. Codes and messages: the Batch API's validation errors (docs/api.md lists them).
"""

import re
from typing import Any

import msgspec

from jobs.protocol import CHAT, COMPLETIONS, MESSAGES, BatchError

BOM = b"\xef\xbb\xbf"
BLANK = b" \t\r\n"
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
REQUIRED = ("custom_id", "method", "url", "body")
# What each endpoint cannot do without, and the type of it.
PROMPT_OF = {CHAT: "messages", COMPLETIONS: "prompt", MESSAGES: "messages"}


class Body(msgspec.Struct):
    """The part of a request's body that decides whether the batch may run. The engine checks the rest, row by row."""

    model: str
    messages: list[msgspec.Raw] | msgspec.UnsetType = msgspec.UNSET
    prompt: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    stream: bool | None = None


class Line(msgspec.Struct):
    """The envelope of one request."""

    custom_id: str
    method: str
    url: str
    body: Body


class LineProblem(Exception):
    """What is wrong with one line, in the words of the contract."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.param = code, message, param

    def at(self, line_no: int) -> BatchError:
        return BatchError(code=self.code, message=self.message, param=self.param, line=line_no)


_decode = msgspec.json.Decoder(Line).decode
_decode_anything = msgspec.json.Decoder().decode

# Deeper JSON is refused: every parser on the way has a limit of its own, and none of them is told here which.
MAX_DEPTH = 64
MAX_NAME_CHARS = 256


def is_blank(content: bytes) -> bool:
    return not content.strip(BLANK)


def parse(content: bytes, *, max_custom_id_chars: int) -> Line:
    """Return the request of one line.

    Raises:
        LineProblem: the line is not a request that any batch could run.
    """
    try:
        line = _decode(content)
        # A string that msgspec skips is not looked at: bytes that are no UTF-8, or half a surrogate pair, hide there.
        content.decode()
        if b"\\ud" in content or b"\\uD" in content or _may_be_deep(content):
            _check_depth(_decode_anything(content))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise _diagnose(content) from None
    _check(line, max_custom_id_chars)
    return line


def _may_be_deep(content: bytes) -> bool:
    """Tell whether the line has so many brackets that it may be nested too deep; brackets in text count too."""
    return content.count(b"[") + content.count(b"{") > MAX_DEPTH


def _check_depth(value: Any, depth: int = 1) -> None:  # noqa: ANN401  any JSON
    if depth > MAX_DEPTH:
        raise LineProblem("invalid_json_line", f"This line is nested deeper than {MAX_DEPTH} levels.")
    if isinstance(value, dict | list):
        for child in value.values() if isinstance(value, dict) else value:
            _check_depth(child, depth + 1)


def _check(line: Line, max_custom_id_chars: int) -> None:
    if not line.custom_id or len(line.custom_id) > max_custom_id_chars:
        message = f"Invalid 'custom_id': expected a string of 1 to {max_custom_id_chars} characters."
        raise LineProblem("invalid_request", message, "custom_id")
    if _CONTROL.search(line.custom_id):
        raise LineProblem("invalid_request", "Invalid 'custom_id': control characters are not allowed.", "custom_id")
    for name, value in (("url", line.url), ("body.model", line.body.model)):
        if len(value) > MAX_NAME_CHARS or _CONTROL.search(value):
            message = (
                f"Invalid '{name}': expected at most {MAX_NAME_CHARS} characters, none of them control characters."
            )
            raise LineProblem("invalid_request", message, name)
    if line.method != "POST":
        raise LineProblem("invalid_request", "Invalid 'method': only 'POST' is supported.", "method")
    if line.body.stream:
        message = "Streaming is not supported in the Batch API."
        raise LineProblem("streaming_unsupported", message, "body.stream")
    _check_prompt(line)


def _check_prompt(line: Line) -> None:
    if not line.body.model:
        raise LineProblem("invalid_request", "Model parameter is required.", "body.model")
    if (name := PROMPT_OF.get(line.url)) and not getattr(line.body, name):
        raise LineProblem("invalid_request", f"{name.capitalize()} parameter is required.", f"body.{name}")


def _diagnose(content: bytes) -> LineProblem:
    """Find the words for a line that the typed decoder refused."""
    try:
        value = _decode_anything(content)
    except UnicodeDecodeError:
        return LineProblem("invalid_encoding", "This line is not valid UTF-8.")
    except (msgspec.MsgspecError, RecursionError):
        return _undecodable(content)
    if not isinstance(value, dict):
        return LineProblem("invalid_json_line", "This line is not a JSON object.")
    return _wrong_shape(value)


def _undecodable(content: bytes) -> LineProblem:
    try:
        content.decode()
    except UnicodeDecodeError:
        return LineProblem("invalid_encoding", "This line is not valid UTF-8.")
    return _not_json()


def _not_json() -> LineProblem:
    return LineProblem("invalid_json_line", "This line is not parseable as valid JSON.")


def _wrong_shape(value: dict[str, Any]) -> LineProblem:
    for name in REQUIRED:
        if value.get(name) is None:
            return LineProblem("missing_required_parameter", f"Missing required parameter: '{name}'.", name)
    for name in REQUIRED[:3]:
        if not isinstance(value[name], str):
            return LineProblem("invalid_type", f"Invalid type for '{name}': expected a string.", name)
    if not isinstance(value["body"], dict):
        return LineProblem("invalid_type", "Invalid type for 'body': expected an object.", "body")
    return _wrong_body(value["body"])


def _wrong_body(body: dict[str, Any]) -> LineProblem:
    if body.get("model") is None:
        return LineProblem("invalid_request", "Model parameter is required.", "body.model")
    if not isinstance(body["model"], str):
        return LineProblem("invalid_type", "Invalid type for 'body.model': expected a string.", "body.model")
    if not isinstance(body.get("messages", []), list):
        return LineProblem("invalid_type", "Invalid type for 'body.messages': expected an array.", "body.messages")
    if not isinstance(body.get("stream"), bool | None):
        return LineProblem("invalid_type", "Invalid type for 'body.stream': expected a boolean.", "body.stream")
    return _not_json()
