"""Lines of output and error files: finding them by `custom_id`, and what became of a request."""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
from openai import NotFoundError, OpenAI
from openai.types import Batch


@dataclass(frozen=True)
class Failure:
    """Why a request has no answer."""

    code: str
    message: str


class _Named(msgspec.Struct):
    custom_id: str


_decode_name = msgspec.json.Decoder(_Named).decode
_decode = msgspec.json.Decoder().decode


class Results:
    """Result files of one batch. Only the places of their lines are in memory, so any size will do."""

    def __init__(self, files: Iterable[BinaryIO]) -> None:
        self._places: dict[str, tuple[BinaryIO, int]] = {}
        for file in files:
            self._index(file)

    def _index(self, file: BinaryIO) -> None:
        place = 0
        for line in file:
            self._places[_decode_name(line).custom_id] = (file, place)
            place += len(line)

    def find(self, custom_id: str) -> dict[str, Any] | None:
        """Return the line of a request; None if it has none."""
        if (found := self._places.get(custom_id)) is None:
            return None
        file, place = found
        file.seek(place)
        line: dict[str, Any] = _decode(file.readline())
        return line


@contextmanager
def opened(paths: Iterable[Path]) -> Iterator[Results]:
    """Yield the results in those of the files that exist."""
    with ExitStack() as stack:
        yield Results([stack.enter_context(path.open("rb")) for path in paths if path.exists()])


def failure(line: dict[str, Any] | None) -> Failure | None:
    """Return why a request failed; None if it was answered."""
    if line is None:
        return Failure("no_result", "The batch has no line for this row.")
    if error := line.get("error"):
        return Failure(str(error.get("code")), str(error.get("message")))
    response = line.get("response") or {}
    if response.get("status_code") == 200:
        return None
    error = (response.get("body") or {}).get("error") or {}
    return Failure(str(error.get("code") or response.get("status_code")), str(error.get("message", "")))


def text(line: dict[str, Any]) -> str:
    """Return the text of an answer; what has none of its own (embeddings, scores) as JSON."""
    body = line["response"]["body"]
    if choices := body.get("choices"):
        first = choices[0]
        return str(first["message"]["content"] or "") if "message" in first else str(first["text"])
    if isinstance(parts := body.get("content"), list):
        return "".join(part.get("text", "") for part in parts)
    if isinstance(items := body.get("output"), list):
        return "".join(part.get("text", "") for item in items for part in item.get("content", ()))
    return msgspec.json.encode(body).decode()


def error_file(batch: Batch) -> str:
    """Return the id of the error file, which can be read while the batch runs (docs/api.md)."""
    return f"file-{batch.id.removeprefix('batch_')}-error"


def output_file(batch: Batch) -> str:
    """Return the id of the output file, which can be read while the batch runs."""
    return f"file-{batch.id.removeprefix('batch_')}-output"


def failure_codes(sdk: OpenAI, batch: Batch) -> Counter[str]:
    """Count the failed requests of a batch by their codes, as far as they are committed; none of a deleted file."""
    if not batch.request_counts or not batch.request_counts.failed:
        return Counter()
    try:
        with sdk.files.with_streaming_response.content(batch.error_file_id or error_file(batch)) as response:
            found = (failure(_decode(line)) for line in _lines(response.iter_bytes()) if line)
            return Counter(each.code for each in found if each)
    except NotFoundError:
        return Counter()


def _lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield what line feeds end. `iter_lines` breaks lines at U+2028 too, which JSON has in its strings."""
    rest = b""
    for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        yield from whole
    yield rest
