"""F58, F59, F60: bodies that are not as long as they say, that are too long, or that are packed."""

import contextlib
import gzip
import itertools
import zlib
from typing import Any

import pytest
import services
import wire
from memory import Peak
from payloads import numbered

BODY = wire.form(numbered(3))
ENDLESS_PIECES = 500


def framed(server: Any, *headers: str, body: bytes = BODY) -> int:
    return wire.ask(server.port, wire.head("/v1/files", server.key, *headers) + body)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def test_f58_a_length_that_is_too_small_cuts_the_form(server: Any) -> None:
    assert framed(server, f"Content-Length: {len(BODY) - 20}") == 400
    assert server.has_nothing()


def test_f58_a_length_that_is_too_large_is_waited_for_and_given_up(server: Any) -> None:
    assert framed(server, f"Content-Length: {len(BODY) + 20}") == 408
    assert server.has_nothing()


def test_f58_a_client_that_hangs_up_leaves_nothing(server: Any) -> None:
    with wire.connection(server.port) as opened:
        opened.sendall(
            wire.head("/v1/files", server.key, "Content-Length: 9000000") + wire.form(numbered(50_000))[:8_000_000]
        )
        services.wait_until(lambda: server.rows("SELECT FROM lines LIMIT 1"), "some of it is written")
    services.wait_until(server.has_nothing, "it is removed", 20)


def test_f58_no_length_is_no_body(server: Any) -> None:
    assert framed(server) == 400
    assert server.has_nothing()


@pytest.mark.parametrize(
    "headers",
    [
        ("Content-Length: 10", f"Content-Length: {len(BODY)}"),
        ("Content-Length: -1",),
        ("Content-Length: 0x100",),
        ("Content-Length: 1, 2",),
        (f"Content-Length: {'9' * 5_000}",),
        ("Transfer-Encoding: gzip, chunked",),
        ("Transfer-Encoding: chunked, chunked",),
    ],
)
def test_f58_lengths_that_disagree_are_refused(server: Any, headers: tuple[str, ...]) -> None:
    assert framed(server, *headers) in (400, 501)
    assert server.has_nothing()


def test_f58_two_ways_to_say_the_length_are_refused(server: Any) -> None:
    """What a proxy takes for the end may be the beginning of somebody else's call."""
    headers = (f"Content-Length: {len(BODY)}", "Transfer-Encoding: chunked")
    with wire.connection(server.port) as opened:
        opened.sendall(wire.head("/v1/files", server.key, *headers) + chunk(BODY) + b"0\r\n\r\n")
        assert wire.status(opened) == 400
        assert wire.is_closed(opened)
    assert server.has_nothing()


@pytest.mark.parametrize("broken", [b"zz\r\nx", b"-5\r\nhello", b"5\r\nhello!!", b"fffffffffffffffffffffff\r\nx"])
def test_f58_broken_chunks_end_the_call(server: Any, broken: bytes) -> None:
    assert framed(server, "Transfer-Encoding: chunked", body=chunk(BODY[:100]) + broken) in (0, 400)
    services.wait_until(server.has_nothing, "nothing is left")


def test_f59_one_byte_too_many_is_refused_in_mid_stream(server: Any) -> None:
    """The client never stops; it is answered all the same, and what was written is gone."""
    line = numbered(1, lambda _: "x" * 50_000)
    with wire.connection(server.port) as opened:
        opened.sendall(wire.head("/v1/files", server.key, "Transfer-Encoding: chunked"))
        opened.sendall(chunk(wire.form(b"").removesuffix(wire.END)))
        answer = b""
        for sent in itertools.count():
            opened.sendall(chunk(line))
            opened.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                answer += opened.recv(65_536)
            opened.settimeout(30)
            if b"\r\n\r\n{" in answer:
                break
            assert sent * len(line) < 40_000_000, "it was told long ago"
    assert b" 413 " in answer.splitlines()[0]
    assert b"file_too_large" in answer
    assert server.has_nothing()


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, identity", "x" * 3_000])
def test_f60_packed_bodies_are_not_unpacked(server: Any, encoding: str) -> None:
    packed = gzip.compress(bytes(50_000_000))
    assert framed(server, f"Content-Encoding: {encoding}", f"Content-Length: {len(packed)}", body=packed) == 415
    small = wire.head("/v1/batches", server.key, f"Content-Encoding: {encoding}", "Content-Length: 2")
    assert wire.ask(server.port, small + b"{}") == 415
    assert server.has_nothing()


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (gzip.compress(numbered(3)), "gzip"),
        (b"PK\x03\x04\x14\x00\x00\x00\x08\x00" + zlib.compress(numbered(3)), "zip"),
        (b"PAR1\x15\x04\x15\xff", "Parquet"),
        (b"\x28\xb5\x2f\xfd\x04\x00", "zstd"),
    ],
)
def test_f60_an_archive_is_no_input(server: Any, content: bytes, name: str) -> None:
    body = wire.form(content)
    with wire.connection(server.port) as opened:
        opened.sendall(wire.head("/v1/files", server.key, f"Content-Length: {len(body)}", "Connection: close") + body)
        answer = b"".join(iter(lambda: opened.recv(65_536), b""))
    assert b" 400 " in answer.splitlines()[0]
    assert b"invalid_file_format" in answer
    assert name.encode() in answer
    assert server.has_nothing()


PIECE = b"a" * 60_000
# Each goes on for ever after its beginning; no key was asked for.
ENDLESS = {
    "address": (b"GET /", PIECE),
    "header": (b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: ", PIECE),
    "headers": (b"GET / HTTP/1.1\r\nHost: x\r\n", b"X-Many: 1\r\n" * 6_000),
    "trailers": (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"X-Many: 1\r\n" * 6_000),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_a_head_without_end_is_refused_in_flat_memory(server: Any, name: str) -> None:
    """What is read before a key is looked at is bounded, by the HTTP parser."""
    beginning, piece = ENDLESS[name]
    with Peak(server.pid) as peak, wire.connection(server.port) as opened, contextlib.suppress(ConnectionError):
        opened.sendall(beginning)
        for _ in range(ENDLESS_PIECES):
            opened.sendall(piece)
        pytest.fail("it took all of it")
    assert peak.peak - peak.idle < 10_000_000
    assert wire.ask(server.port, b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n") == 200
