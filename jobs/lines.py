"""One line of an input file: what it must hold, and what is wrong with it. Pure.

A valid line costs one pass in C, a whole decode as the worker will do it. Of keys that are there twice msgspec says
nothing: a line with more colons than its keys and texts have is looked through for them. Only one that fails is looked
at again, slowly, to name the parameter. Codes and messages: the Batch API's validation errors (docs/api.md lists them).
"""

import json
import re
from typing import Any

import msgspec

from jobs.protocol import CHAT, COMPLETIONS, EMBEDDINGS, MESSAGES, RESPONSES, SCORE, BatchError

BOM = b"\xef\xbb\xbf"
BLANK = b" \t\r\n"
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
REQUIRED = ("custom_id", "method", "url", "body")
# What each endpoint cannot do without: of each group one name. vLLM spells the two sides of a score in four ways; which
# names go together is the engine's matter.
PROMPT_OF: dict[str, tuple[tuple[str, ...], ...]] = {
    CHAT: (("messages",),),
    COMPLETIONS: (("prompt",),),
    EMBEDDINGS: (("input",),),
    RESPONSES: (("input",),),
    MESSAGES: (("messages",),),
    SCORE: (("queries", "text_1", "data_1"), ("documents", "items", "text_2", "data_2")),
}


class Body(msgspec.Struct):
    """The part of a request's body that decides whether the batch may run. The engine checks the rest, row by row."""

    model: str
    messages: list[Any] | msgspec.UnsetType = msgspec.UNSET
    prompt: Any = msgspec.UNSET
    input: Any = msgspec.UNSET
    queries: Any = msgspec.UNSET
    documents: Any = msgspec.UNSET
    items: Any = msgspec.UNSET
    text_1: Any = msgspec.UNSET
    text_2: Any = msgspec.UNSET
    data_1: Any = msgspec.UNSET
    data_2: Any = msgspec.UNSET
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


_decode = msgspec.json.Decoder().decode

# Deeper JSON is refused: every parser on the way has a limit of its own, and none of them is told here which.
MAX_DEPTH = 64
MAX_NAME_CHARS = 256
MAX_QUOTED_CHARS = 64
LONG_LINE_BYTES = 1_000_000
_CONTAINERS = (dict, list)
# A colon of a text that is not there as one, with which a second key could be balanced.
_ESCAPED_COLON = re.compile(rb"\\u003[Aa]")
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"')
_IS_KEY = re.compile(rb"[ \t\r\n]*:")
# What is sent in place of JSONL, by its first bytes.
_OTHER_FORMATS = {
    b"PK\x03\x04": "a zip archive (or a spreadsheet)",
    b"\x1f\x8b": "compressed with gzip",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"PAR1": "a Parquet file",
    b"%PDF": "a PDF",
}


def is_blank(content: bytes) -> bool:
    return not content.strip(BLANK)


def parse(content: bytes, *, max_custom_id_chars: int) -> Line:
    """Return the request of one line.

    Raises:
        LineProblem: the line is not a request that any batch could run.
    """
    line = _read(content)
    if line is None:
        raise _diagnose(content)
    _check(line, max_custom_id_chars)
    return line


def _read(content: bytes) -> Line | None:
    """Decode a line; None, and nothing of it is kept, if it has not the shape of a request.

    Raises:
        LineProblem: it is nested too deep, or has a key twice.
    """
    try:
        value = _decode(content)
        line = msgspec.convert(value, Line)
        if not _may_have_a_key_twice(content, value):
            return line
        if len(content) <= LONG_LINE_BYTES:
            _check_keys(content)
            return line
        # It would be in memory twice.
        del value, line
        _check_keys(content)
        return msgspec.convert(_decode(content), Line)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def _may_have_a_key_twice(content: bytes, value: Any) -> bool:  # noqa: ANN401  any JSON
    """Tell whether the line has more colons than what was made of it: a key that is there twice is made once.

    Raises:
        LineProblem: it is nested too deep.
    """
    others = content.count(b":") - _count_keys(value)
    # Most lines end here, with no colon in a text.
    return bool(others) and (others != _count_in_texts(value) or _ESCAPED_COLON.search(content) is not None)


def _count_keys(value: Any, depth: int = 1) -> int:  # noqa: ANN401  any JSON
    if depth > MAX_DEPTH:
        raise LineProblem("invalid_json_line", f"This line is nested deeper than {MAX_DEPTH} levels.")
    if type(value) is dict:
        count, children = len(value), value.values()
    else:
        count, children = 0, value
    for child in children:
        if type(child) in _CONTAINERS:
            count += _count_keys(child, depth + 1)
    return count


def _count_in_texts(value: Any) -> int:  # noqa: ANN401  any JSON
    """Return how many colons the texts of an object or array have, its keys too."""
    if isinstance(value, str):
        return value.count(":")
    if isinstance(value, dict):
        return sum(map(_count_in_texts, value)) + sum(map(_count_in_texts, value.values()))
    return sum(map(_count_in_texts, value)) if isinstance(value, list) else 0


def _check_keys(content: bytes) -> None:
    _read_keys((content if len(content) <= LONG_LINE_BYTES else _without_long_strings(content)).decode())


def _without_long_strings(content: bytes) -> bytes:
    """Return a line with its long strings made short, equal keys alike: as text one letter may take four bytes."""
    return _STRING.sub(_shortened, content)


def _shortened(found: re.Match[bytes]) -> bytes:
    """Return a long key as its beginning and what tells it from others, however they are spelt; a long text as none."""
    if len(found[0]) <= MAX_QUOTED_CHARS + len('""'):
        return found[0]
    if not _IS_KEY.match(found.string, found.end()):
        return b'""'
    key = _decode(found[0])
    return json.dumps(key if len(key) <= MAX_QUOTED_CHARS else f"{key[:MAX_QUOTED_CHARS]}{hash(key)}").encode()


def _unique(pairs: list[tuple[str, None]]) -> None:
    """Take one JSON object of a line; nothing is made of it."""
    if len(dict(pairs)) == len(pairs):
        return
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise LineProblem("invalid_json_line", f"This line has the key '{_quoted(key)}' twice in one object.")
        seen.add(key)


# Of two equal keys parsers keep one, and not all the same one: what is checked must be what is run (RFC 8259, 4).
_read_keys = json.JSONDecoder(object_pairs_hook=_unique).decode


def _quoted(text: str) -> str:
    return _CONTROL.sub("?", text[:MAX_QUOTED_CHARS])


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
    for names in PROMPT_OF.get(line.url, ()):
        if not any(_is_given(line.body, name) for name in names):
            message = f"{names[0].capitalize()} parameter is required."
            raise LineProblem("invalid_request", message, f"body.{names[0]}")


def _is_given(body: Body, name: str) -> bool:
    # Whether what is given says anything is the engine's matter, but for a chat without a message.
    value = getattr(body, name)
    return bool(value) if name == "messages" else value is not msgspec.UNSET


def _diagnose(content: bytes) -> LineProblem:
    """Find the words for a line that is no request."""
    try:
        value = _decode(content)
        _check_keys(content)
    except LineProblem as problem:
        return problem
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return _undecodable(content)
    if not isinstance(value, dict):
        return LineProblem("invalid_json_line", "This line is not a JSON object.")
    return _wrong_shape(value)


def _undecodable(content: bytes) -> LineProblem:
    for magic, name in _OTHER_FORMATS.items():
        if content.startswith(magic):
            return LineProblem("invalid_json_line", f"This is not JSON: it looks like {name}.")
    try:
        content.decode()
    except UnicodeDecodeError:
        return LineProblem("invalid_encoding", "This line is not valid UTF-8.")
    if b"\0" in content:
        return LineProblem("invalid_encoding", "This line has NUL bytes. Is it UTF-16? Only UTF-8 is read.")
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
