"""Uploads in parts, as a program does them."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from conformance.user import User
from openai.types import Upload


def begin(user: User, size: int) -> Upload:
    return user.sdk.uploads.create(filename="parts.jsonl", purpose="batch", bytes=size, mime_type="application/jsonl")


def send(user: User, upload: Upload, parts: list[bytes]) -> list[str]:
    """Send the parts at the same time, the last one first; return their ids in the order of the file."""
    with ThreadPoolExecutor(len(parts)) as pool:
        sent = [pool.submit(part, user, upload, each) for each in reversed(parts)]
        return [each.result() for each in reversed(sent)]


def part(user: User, upload: Upload, data: bytes) -> str:
    made = user.sdk.uploads.parts.create(upload.id, data=data)
    assert (made.object, made.upload_id) == ("upload.part", upload.id)
    assert type(made.created_at) is int
    return made.id


def thirds(data: bytes) -> list[bytes]:
    cut = len(data) // 3
    return [data[:cut], data[cut : 2 * cut], data[2 * cut :]]


def complete(user: User, upload: Upload, part_ids: list[str], **more: Any) -> Upload:
    return user.sdk.uploads.complete(upload.id, part_ids=part_ids, **more)
