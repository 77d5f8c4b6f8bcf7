"""Downloads that go on where they broke off, and files that are there whole or not at all."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
from openai import APIConnectionError, APIResponse, InternalServerError, OpenAI

from jobs.errors import InvalidRequest, PromptmillError

# After each the download goes on from its last byte.
PAUSES_SECONDS = (0.5, 1, 2, 4, 8, 16)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path to write to; afterwards `path` is what was written, on disk. If that fails it is as it was."""
    fresh = path.with_name(f".{path.name}.new")
    try:
        yield fresh
        _sync(fresh)
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def require_absent(path: Path, *, force: bool, more: str = "") -> None:
    """Go on if nothing is there that the user may want to keep.

    Args:
        path: what is to be written.
        force: whether the user said that it may be written over.
        more: what else there is to do, as the end of the message.

    Raises:
        InvalidRequest: a file is there.
    """
    if path.exists() and not force:
        raise InvalidRequest(f"{path} is there already; --force writes over it{more}.")


def fetch(sdk: OpenAI, file_id: str, path: Path) -> int:
    """Download a file that does not change any more; return its bytes. `path` is whole, or as it was.

    What was received is kept beside it, so that the same call goes on from there, after a kill too.

    Raises:
        PromptmillError: the connection broke again and again.
    """
    size = sdk.files.retrieve(file_id).bytes
    part = path.with_name(f".{path.name}.{file_id}.part")
    part.touch()
    for pause in (*PAUSES_SECONDS, None):
        try:
            _receive(sdk, file_id, part, size)
        except (APIConnectionError, InternalServerError, httpx2.TransportError) as error:
            if pause is None:
                message = f"The download of {file_id} broke off at byte {part.stat().st_size} of {size}: {error}"
                raise PromptmillError(message) from error
            time.sleep(pause)
        else:
            break
    _sync(part)
    part.replace(path)
    return size


def _receive(sdk: OpenAI, file_id: str, part: Path, size: int) -> None:
    """Append what is missing."""
    have = part.stat().st_size
    if have > size:
        os.truncate(part, 0)
        have = 0
    if have == size:
        return
    headers = {"range": f"bytes={have}-", "if-range": f'"{file_id}"'} if have else {}
    with sdk.files.with_streaming_response.content(file_id, extra_headers=headers) as response:
        _write(response, part)
    if part.stat().st_size != size:
        message = f"{file_id} has {size} bytes, but {part.stat().st_size} came."
        raise httpx2.RemoteProtocolError(message)


def _write(response: APIResponse[bytes], part: Path) -> None:
    # A server that knows no ranges sends all of it.
    with part.open("ab" if response.status_code == 206 else "wb") as file:
        # As they come: bytes that wait for a piece to be full are lost with the connection.
        for piece in response.iter_bytes():
            file.write(piece)


def fetch_partial(sdk: OpenAI, file_id: str, path: Path) -> int:
    """Download what a file that still grows holds by now; return its bytes."""
    content = sdk.files.with_streaming_response.content(file_id)
    with replacing(path) as fresh, content as response, fresh.open("wb") as file:
        for piece in response.iter_bytes():
            file.write(piece)
        return file.tell()
