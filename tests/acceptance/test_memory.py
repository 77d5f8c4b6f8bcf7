"""The API's memory stays flat, whatever the size of a file."""

import random
from collections.abc import Iterator
from typing import Any

import services
from anthropic import Anthropic
from clients import User
from memory import Peak
from payloads import numbered

LIMIT_BYTES = 128_000_000
FILE_BYTES = 200_000_000


def big_file(size: int) -> bytes:
    """Return about `size` bytes of requests of 4 KB."""
    words = "the river bank opened early and the old printer kept working through every long winter night "
    prompt = (words * 50)[:3_800]
    line = len(numbered(1, lambda _: prompt))
    return numbered(size // (line + 6), lambda _: prompt)


def test_an_upload_and_a_download_of_200_megabytes_take_little_memory(stack: services.Stack) -> None:
    data = big_file(FILE_BYTES)
    assert 0.97 * FILE_BYTES < len(data) < FILE_BYTES
    assert memory_above_idle(stack, data) < LIMIT_BYTES


def test_long_lines_take_little_memory_too(stack: services.Stack) -> None:
    data = numbered(6, lambda _: "x" * 19_900_000)
    assert memory_above_idle(stack, data) < LIMIT_BYTES


def test_a_file_in_parts_takes_little_memory(stack: services.Stack) -> None:
    """Its parts, what makes one file of them, and its download."""
    process, user = stack.api(), User(stack)
    block = random.Random(1).randbytes(1_000_003)
    data = block * 300
    warm_up(user)
    with Peak(process.popen.pid) as peak:
        upload = user.sdk.uploads.upload_file_chunked(
            file=data, filename="a", bytes=len(data), mime_type="b", purpose="user_data"
        )
        assert upload.file
        assert same(data, pieces(user, upload.file.id))
    print(f"\nAPI memory above idle: {(peak.peak - peak.idle) / 1e6:.1f} MB for {len(data) / 1e6:.0f} MB in parts")
    assert peak.peak - peak.idle < LIMIT_BYTES


def same(data: bytes, received: Iterator[bytes]) -> bool:
    """Tell whether the pieces are the data, without a second copy of it."""
    place, view = 0, memoryview(data)
    for piece in received:
        if view[place : place + len(piece)] != piece:
            return False
        place += len(piece)
    return place == len(data)


def warm_up(user: User) -> None:
    user.sdk.files.delete(user.sdk.files.create(file=("a", numbered(10)), purpose="batch").id)


def memory_above_idle(stack: services.Stack, data: bytes) -> int:
    """Upload a file and download it again; return what the API took for it at most, bytes."""
    process = stack.api()
    user = User(stack)
    warm_up(user)
    with Peak(process.popen.pid) as peak:
        file = user.sdk.files.create(file=("big.jsonl", data), purpose="batch")
        downloaded = b"".join(pieces(user, file.id))
    assert downloaded == data
    taken = peak.peak - peak.idle
    print(f"\nAPI memory above idle: {taken / 1e6:.1f} MB for {len(data) / 1e6:.0f} MB")
    return taken


def pieces(user: User, file_id: str) -> Iterator[bytes]:
    with user.sdk.files.with_streaming_response.content(file_id) as response:
        yield from response.iter_bytes()


def test_a_message_batch_of_100_megabytes_takes_little_memory(stack: services.Stack) -> None:
    process = stack.api()
    stack.know_model("scripted")
    params = {
        "model": "scripted",
        "max_tokens": 9,
        "messages": [{"role": "user", "content": "long winter night " * 200}],
    }
    requests: Any = [{"custom_id": f"row-{number}", "params": params} for number in range(28_000)]
    address = stack.base_url.removesuffix("/v1")
    with Anthropic(base_url=address, api_key=stack.key(), max_retries=0) as sdk:
        sdk.messages.batches.create(requests=requests[:1])
        with Peak(process.popen.pid) as peak:
            batch = sdk.messages.batches.create(requests=requests)
    assert batch.request_counts.processing == 28_000
    assert peak.peak - peak.idle < LIMIT_BYTES / 2
