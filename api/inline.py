"""Reads `{"requests": [{"custom_id", "params"}, ...]}` as it arrives and makes a line of an input file of each request.

Only brackets and quotes are looked at until a request is whole; then it is decoded, and the bytes of its `params` go
into the line as they were sent. A JSON library that builds values would change them (ijson 3.6: half a surrogate pair
becomes "?", integers end at 64 bits) and keeps a path as long as the nesting is deep.
"""

import re
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Annotated, Any

import msgspec
from starlette.concurrency import run_in_threadpool

from jobs.errors import InvalidRequest, PayloadTooLarge
from jobs.protocol import MESSAGES

# Handed to the reader at once: big enough that a thread switch costs nothing, small enough to keep memory flat.
CHUNK_BYTES = 1_000_000
# All of the body that is not in a request: commas, and the white space of a client that indents.
MAX_ENVELOPE_BYTES = 4_000_000
# What a line has that a request has not.
LINE_EXTRA_BYTES = 64

Sink = Callable[[bytes], None]

_MARK = re.compile(rb'["{}\[\]]')
_IN_STRING = re.compile(rb'["\\]')
# Stands for a request in the envelope: no other object can be at that place.
_PLACEHOLDER = b"{}"
# In what was decoded, line ends can only be between values.
_LINE_ENDS = bytes.maketrans(b"\r\n", b"  ")
_WHERE = re.compile(r"(.*?)(?: - at `\$(.*)`)?", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(\w+)`")


class _Envelope(msgspec.Struct, forbid_unknown_fields=True):
    requests: list[dict[str, Any]]


class _Params(msgspec.Struct):
    """What the Messages API cannot do without and `jobs.lines` does not know."""

    max_tokens: Annotated[int, msgspec.Meta(ge=1)]


class _Request(msgspec.Struct, forbid_unknown_fields=True):
    custom_id: Annotated[str, msgspec.Meta(pattern="^[a-zA-Z0-9_-]{1,64}$")]
    params: msgspec.Raw


_decode_envelope = msgspec.json.Decoder(_Envelope).decode
_decode_request = msgspec.json.Decoder(_Request).decode
_decode_params = msgspec.json.Decoder(_Params).decode


async def receive(stream: AsyncIterator[bytes], sink: Sink, *, max_bytes: int, max_request_bytes: int) -> None:
    """Send a line for each request to `sink`, in order and off the event loop.

    Raises:
        PayloadTooLarge: the body is longer than `max_bytes`.
        InvalidRequest: the body is not of this form; the place is named.
    """
    reader = _Reader(sink, max_request_bytes - LINE_EXTRA_BYTES)
    waiting = bytearray()
    async for chunk in stream:
        max_bytes -= len(chunk)
        if max_bytes < 0:
            message = "The body is larger than this server accepts."
            raise PayloadTooLarge(message)
        waiting += chunk
        if len(waiting) >= CHUNK_BYTES:
            data, waiting = bytes(waiting), bytearray()
            await run_in_threadpool(reader.feed, data)
    await run_in_threadpool(reader.feed, bytes(waiting))
    reader.close()


class _Reader:
    """Makes lines of requests."""

    def __init__(self, sink: Sink, max_request_bytes: int) -> None:
        self._sink = sink
        self._splitter = Splitter(max_request_bytes)

    def feed(self, chunk: bytes) -> None:
        for number, request in self._splitter.feed(chunk):
            self._sink(_line(number, request))

    def close(self) -> None:
        envelope = _decoded(_decode_envelope, self._splitter.envelope())
        if not envelope.requests:
            message = "requests: at least one is needed."
            raise InvalidRequest(message, param="requests")
        if len(envelope.requests) != self._splitter.count:
            message = "requests: given twice."
            raise InvalidRequest(message, param="requests")


class Splitter:
    """Cuts a body at the objects on its third level, which is where the requests are."""

    def __init__(self, max_request_bytes: int) -> None:
        self.count = 0
        self._max_request_bytes = max_request_bytes
        self._envelope = bytearray()
        # The request that has no end yet, in pieces: a long one is put together once.
        self._open: list[bytes] = []
        self._open_bytes = 0
        self._depth = 0
        self._in_request = self._in_string = self._after_backslash = False

    def feed(self, chunk: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield the requests that end in the next bytes of the body, each with its number from 0.

        Raises:
            InvalidRequest: a request, or all that is around them, is too long.
        """
        start = 0
        for position in self._brackets(chunk):
            is_opening = chunk[position] in b"{["
            self._depth += 1 if is_opening else -1
            if is_opening and self._depth == 3 and chunk[position] == ord("{") and not self._in_request:
                self._keep_envelope(chunk[start:position])
                self._in_request, start = True, position
            elif self._in_request and self._depth == 2:
                self._keep(chunk[start : position + 1])
                yield self.count, b"".join(self._open)
                self._in_request, start = False, position + 1
                self._open, self._open_bytes = [], 0
                self.count += 1
                self._keep_envelope(_PLACEHOLDER)
        (self._keep if self._in_request else self._keep_envelope)(chunk[start:])

    def envelope(self) -> bytes:
        """Return the body with an empty object for each request. What never ended is not JSON."""
        return bytes(self._envelope)

    def _brackets(self, chunk: bytes) -> Iterator[int]:
        """Yield the places of the brackets that are not in a string."""
        position = int(self._after_backslash)
        while found := (_IN_STRING if self._in_string else _MARK).search(chunk, position):
            position = found.end()
            if found[0] == b'"':
                self._in_string = not self._in_string
            elif found[0] == b"\\":
                position += 1
            else:
                yield found.start()
        self._after_backslash = position > len(chunk)

    def _keep(self, piece: bytes) -> None:
        self._open.append(piece)
        self._open_bytes += len(piece)
        if self._open_bytes > self._max_request_bytes:
            message = f"requests.{self.count}: longer than {self._max_request_bytes} bytes."
            raise InvalidRequest(message, param=f"requests.{self.count}")

    def _keep_envelope(self, piece: bytes) -> None:
        self._envelope += piece
        if len(self._envelope) > MAX_ENVELOPE_BYTES:
            message = "The body has too much beside its requests."
            raise InvalidRequest(message)


def _line(number: int, content: bytes) -> bytes:
    where = f"requests.{number}"
    request = _decoded(_decode_request, content, where)
    _decoded(_decode_params, request.params, f"{where}.params")
    head = b'{"custom_id":"%b","method":"POST","url":"%b","body":' % (request.custom_id.encode(), MESSAGES.encode())
    return head + bytes(request.params).translate(_LINE_ENDS) + b"}\n"


def _decoded(decode: Callable[[Any], Any], content: Any, where: str = "") -> Any:  # noqa: ANN401  as the decoder has it
    try:
        return decode(content)
    except msgspec.ValidationError as error:
        message = _words(str(error), where)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        message = f"{where or 'The body'}: not valid JSON."
    raise InvalidRequest(message)


def _words(error: str, where: str) -> str:
    """Return msgspec's message in the words of the contract: the place first, in dots."""
    problem, place = _WHERE.fullmatch(error).groups()  # type: ignore[union-attr]  # everything matches
    if missing := _MISSING.fullmatch(problem):
        problem, place = "Field required", f"{place or ''}.{missing[1]}"
    path = (where + (place or "")).replace("[", ".").replace("]", "").lstrip(".")
    return f"{path or 'The body'}: {problem}."
