"""The API's memory stays flat, whatever the size of a file."""

import threading
from collections.abc import Iterator

import psutil
import services
from clients import User
from payloads import numbered

LIMIT_BYTES = 128_000_000
FILE_BYTES = 200_000_000


class Peak:
    """The highest resident memory of a process while a block runs."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._over = threading.Event()
        self.idle = self.peak = self._process.memory_info().rss

    def _watch(self) -> None:
        while not self._over.wait(0.01):
            self.peak = max(self.peak, self._process.memory_info().rss)

    def __enter__(self) -> "Peak":
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


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


def pieces(user: User, file_id: str) -> Iterator[bytes]:
    with user.sdk.files.with_streaming_response.content(file_id) as response:
        yield from response.iter_bytes()
