"""Reads a multipart upload as it arrives; nothing is spooled to disk or kept in memory."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool

from jobs.errors import InvalidRequest

# Handed to the sink at once: big enough that a thread switch costs nothing, small enough to keep memory flat.
CHUNK_BYTES = 1_000_000
MAX_FIELD_BYTES = 10_000
MAX_PARTS = 20
MAX_QUOTED_CHARS = 64
MAX_HEADER_BYTES = 10_000
# Everything but the file: all fields and headers, and what stands before the first part and after the last one.
MAX_OTHER_BYTES = MAX_PARTS * (MAX_FIELD_BYTES + MAX_HEADER_BYTES) + 100_000

Sink = Callable[[bytes], None]
Fields = dict[str, str]


@dataclass
class Form:
    """The parts of an upload: small fields by name, and the name that the client gave its file."""

    fields: Fields = field(default_factory=dict)
    filename: str | None = None


async def receive(
    stream: AsyncIterator[bytes],
    content_type: str,
    sink: Sink,
    *,
    name: str = "file",
    on_begin: Callable[[Fields], None] = lambda _: None,
) -> Form:
    """Send the bytes of the part `name` to `sink`, in order and off the event loop; return the rest.

    Before its first byte `on_begin` gets the fields that came before the part. It must not block.

    Raises:
        InvalidRequest: the body is not a multipart form, has too many or too large fields, or one twice.
    """
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        message = "Send the file as multipart/form-data."
        raise InvalidRequest(message)
    reader = _Reader(boundary, name, on_begin)
    async for chunk in stream:
        reader.feed(chunk)
        if reader.file_bytes >= CHUNK_BYTES:
            await run_in_threadpool(sink, reader.take())
    reader.close()
    if rest := reader.take():
        await run_in_threadpool(sink, rest)
    return reader.form


@contextmanager
def _well_formed() -> Iterator[None]:
    try:
        yield
    except FormParserError as error:
        message = "The multipart form is not well formed."
        raise InvalidRequest(message) from error


class _Reader:
    """Callbacks of python-multipart's push parser."""

    def __init__(self, boundary: bytes, name: str, on_begin: Callable[[Fields], None]) -> None:
        self._name, self._on_begin = name, on_begin
        self.form = Form()
        self.file_bytes = 0
        self._file: list[bytes] = []
        self._header_name = self._header_value = b""
        self._headers: dict[bytes, bytes] = {}
        self._header_bytes = 0
        self._field = ""
        self._value = b""
        self._parts = self._other_bytes = 0
        self._ended = False
        with _well_formed():
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._part_begin,
                    "on_header_field": self._header_field,
                    "on_header_value": self._header_value_data,
                    "on_header_end": self._header_end,
                    "on_headers_finished": self._headers_finished,
                    "on_part_data": self._part_data,
                    "on_part_end": self._part_end,
                    "on_end": self._end,
                },
            )

    def feed(self, chunk: bytes) -> None:
        before = self.file_bytes
        with _well_formed():
            self._parser.write(chunk)
        self._other_bytes += len(chunk) - (self.file_bytes - before)
        if self._other_bytes > MAX_OTHER_BYTES:
            message = "The multipart form has too much around its file."
            raise InvalidRequest(message)

    def close(self) -> None:
        if not self._ended:
            message = "The multipart form ends too early."
            raise InvalidRequest(message)

    def take(self) -> bytes:
        """Return the bytes of the file that came since the last time."""
        data, self._file, self.file_bytes = b"".join(self._file), [], 0
        return data

    def _part_begin(self) -> None:
        self._headers, self._header_bytes, self._value = {}, 0, b""
        self._parts += 1
        if self._parts > MAX_PARTS:
            message = "The multipart form has too many parts."
            raise InvalidRequest(message)

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]
        self._bound_header(end - start)

    def _header_value_data(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]
        self._bound_header(end - start)

    def _bound_header(self, count: int) -> None:
        self._header_bytes += count
        if self._header_bytes > MAX_HEADER_BYTES:
            message = "The headers of a part of the form are too long."
            raise InvalidRequest(message)

    def _header_end(self) -> None:
        self._headers[self._header_name.lower()] = self._header_value
        self._header_name = self._header_value = b""

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        name = options.get(b"name", b"").decode("utf-8", "replace")
        self._field = name
        if name in self.form.fields or (name == self._name and self.form.filename is not None):
            message = f"The form has the field '{name[:MAX_QUOTED_CHARS]}' twice."
            raise InvalidRequest(message, param=name[:MAX_QUOTED_CHARS])
        if name == self._name:
            self._on_begin(self.form.fields)
            self.form.filename = options.get(b"filename", b"upload.jsonl").decode("utf-8", "replace")

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._field == self._name:
            self._file.append(data[start:end])
            self.file_bytes += end - start
            return
        self._value += data[start:end]
        if len(self._value) > MAX_FIELD_BYTES:
            message = f"The form field '{self._field[:MAX_QUOTED_CHARS]}' is too long."
            raise InvalidRequest(message, param=self._field[:MAX_QUOTED_CHARS])

    def _part_end(self) -> None:
        if self._field != self._name:
            self.form.fields[self._field] = self._value.decode("utf-8", "replace")

    def _end(self) -> None:
        self._ended = True
