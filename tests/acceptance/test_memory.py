"""The API's memory stays flat, whatever the size of a file."""

from collections.abc import Iterator

import services
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
    process = stack.api()
    user = User(stack)
    user.sdk.files.delete(user.sdk.files.create(file=("a", numbered(10)), purpose="batch").id)
    data = big_file(FILE_BYTES)
    assert 0.97 * FILE_BYTES < len(data) < FILE_BYTES
    with Peak(process.popen.pid) as peak:
        file = user.sdk.files.create(file=("big.jsonl", data), purpose="batch")
        downloaded = b"".join(pieces(user, file.id))
    assert downloaded == data
    print(f"\nAPI memory above idle: {(peak.peak - peak.idle) / 1e6:.1f} MB for {len(data) / 1e6:.0f} MB")
    assert peak.peak - peak.idle < LIMIT_BYTES


def test_long_lines_take_little_memory_too(stack: services.Stack) -> None:
    process = stack.api()
    user = User(stack)
    user.sdk.files.delete(user.sdk.files.create(file=("a", numbered(10)), purpose="batch").id)
    data = numbered(6, lambda _: "x" * 19_900_000)
    with Peak(process.popen.pid) as peak:
        file = user.sdk.files.create(file=("big.jsonl", data), purpose="batch")
        downloaded = b"".join(pieces(user, file.id))
    assert downloaded == data
    print(f"\nAPI memory above idle: {(peak.peak - peak.idle) / 1e6:.1f} MB for 6 lines of 20 MB")
    assert peak.peak - peak.idle < LIMIT_BYTES


def pieces(user: User, file_id: str) -> Iterator[bytes]:
    with user.sdk.files.with_streaming_response.content(file_id) as response:
        yield from response.iter_bytes()
