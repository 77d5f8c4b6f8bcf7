"""F62, F63, F64: clients that read slowly, in ten thousand pieces, or two hundred at once."""

import contextlib
import time
from collections.abc import Callable
from typing import Any

import pytest
import services
import wire
from clients import User
from memory import Peak
from payloads import numbered

MEGABYTE = 1_000_000
DOWNLOADS = 200


def big_file(user: User, size: int) -> tuple[str, bytes]:
    data = numbered(size // 4_000, lambda number: f"{number} " + "x" * 3_800)
    return user.sdk.files.create(file=("a.jsonl", data), purpose="batch").id, data


def get(server: Any, file_id: str, *headers: str) -> bytes:
    return wire.head(f"/v1/files/{file_id}/content", server.key, *headers, method="GET")


def test_f62_a_slow_reader_holds_nothing_open(start: Callable[..., Any]) -> None:
    """The file is deleted and its lines are gone, then the server is told to stop: no half file looks whole."""
    server = start(PROMPTMILL_API__DRAIN_SECONDS="3")
    user = server.user()
    file_id, data = big_file(user, 40 * MEGABYTE)
    with wire.connection(server.port, receive_buffer=4_096) as opened:
        opened.sendall(get(server, file_id))
        received = opened.recv(1_000)
        services.wait_until(lambda: not server.busy(), "no transaction waits for the reader", 20)
        user.sdk.files.delete(file_id)
        server.stack.reconciler()
        services.wait_until(lambda: not server.rows("SELECT FROM lines LIMIT 1"), "its lines are swept", 30)
        for _ in range(20):
            received += opened.recv(1_000)
            time.sleep(0.01)
        server.process.popen.terminate()
        server.process.popen.wait(20)
        with contextlib.suppress(ConnectionError):
            while piece := opened.recv(MEGABYTE):
                received += piece
    head, _, body = received.partition(b"\r\n\r\n")
    assert f"content-length: {len(data)}".encode() in head.lower()
    assert data.startswith(body)
    assert len(body) < len(data), "the client can tell"


@pytest.mark.parametrize("ranges", [2, 1_500, 10_000])
def test_f63_many_ranges_are_the_whole_file(server: Any, ranges: int) -> None:
    """The pattern that reads the header looks at each of its bytes once."""
    file_id, data = big_file(server.user(), MEGABYTE)
    header = "Range: bytes=" + ",".join(f"{number}-{number}" for number in range(ranges))
    with wire.connection(server.port) as opened:
        opened.sendall(get(server, file_id, header, "Connection: close"))
        answer = b"".join(iter(lambda: opened.recv(MEGABYTE), b""))
    # Headers that are longer than 64 KB and come in pieces are refused by uvicorn.
    assert int(answer.split()[1]) in (200, 400)
    assert answer.endswith(data) or ranges == 10_000


def test_f64_two_hundred_downloads_at_once_take_little_memory(server: Any) -> None:
    """Each has read a little and waits; all of them are begun before any goes on."""
    file_id, data = big_file(server.user(), 9 * MEGABYTE)
    with contextlib.ExitStack() as downloads, Peak(server.pid) as peak:
        opened = [
            downloads.enter_context(wire.connection(server.port, 60, receive_buffer=4_096)) for _ in range(DOWNLOADS)
        ]
        for each in opened:
            each.sendall(get(server, file_id, "Connection: close"))
        begun = [each.recv(100) for each in opened]
        assert all(b" 200 " in first for first in begun)
        whole = begun[0] + b"".join(iter(lambda: opened[0].recv(MEGABYTE), b""))
        assert whole.endswith(data)
    taken = peak.peak - peak.idle
    print(f"\nAPI memory above idle: {taken / 1e6:.0f} MB for {DOWNLOADS} downloads")
    assert taken < 400 * MEGABYTE
