"""F61: forms that are mostly something else. Refused, in flat memory."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import wire
from memory import Peak
from payloads import numbered

MEGABYTE = 1_000_000
LIMIT_BYTES = 30 * MEGABYTE


def part(name: str, content: bytes = b"1") -> bytes:
    return b'--frontier\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (name.encode(), content)


def again(data: bytes, size: int = 100 * MEGABYTE) -> Iterator[bytes]:
    return itertools.repeat(data, size // len(data))


WHOLE = wire.form(numbered(1))
FORMS: dict[str, Iterable[bytes]] = {
    "ten thousand parts": (part(f"field-{number}") for number in range(10_000)),
    "ten thousand parts of one name": again(part("purpose"), 10_000 * len(part("purpose"))),
    "a purpose twice": [part("purpose", b"batch"), WHOLE],
    "two files": [WHOLE.removesuffix(wire.END), b"\r\n", WHOLE],
    "a header of a part without end": itertools.chain([b"--frontier\r\nX-Long: "], again(b"a" * MEGABYTE)),
    "a header's name without end": itertools.chain([b"--frontier\r\n"], again(b"a" * MEGABYTE)),
    "a million headers": itertools.chain([b"--frontier\r\n"], again(b"X-A: b\r\n" * 1_000)),
    "a field without end": itertools.chain([part("purpose")[:-3]], again(b"x" * MEGABYTE)),
    "blank lines before the form": itertools.chain(again(b"\r\n" * 500_000), [WHOLE]),
    "junk before the form": itertools.chain([b"\r\n"], again(b"junk" * 250_000), [b"\r\n", WHOLE]),
    "junk after the form": itertools.chain([WHOLE], again(b"junk" * 250_000)),
    "boundaries that are none": itertools.chain([part("purpose")[:-3]], again(b"\r\n--frontie" * 1_000)),
    "only dashes": again(b"-" * MEGABYTE),
    "nothing": [],
}


@pytest.mark.parametrize("kind", FORMS)
def test_a_form_that_is_mostly_something_else_is_refused(server: Any, kind: str) -> None:
    """The server answers before all is sent, or refuses what it has read; it keeps none of it."""
    with Peak(server.pid) as peak, wire.connection(server.port) as opened:
        opened.sendall(wire.head("/v1/files", server.key, "Transfer-Encoding: chunked"))
        for piece in FORMS[kind]:
            opened.sendall(b"%x\r\n%s\r\n" % (len(piece), piece))
        opened.sendall(b"0\r\n\r\n")
        assert wire.status(opened) == 400
    assert peak.peak - peak.idle < LIMIT_BYTES
    assert server.has_nothing()


@pytest.mark.parametrize("boundary", ["", "x" * 300, '"', "a\x01b", "; boundary=b", "=?utf-8?q?x?="])
def test_a_boundary_that_is_none_is_refused(server: Any, boundary: str) -> None:
    """One of 257 bytes was a 500."""
    kind = f"Content-Type: multipart/form-data; boundary={boundary}"
    head = wire.head("/v1/files", server.key, kind, f"Content-Length: {len(WHOLE)}")
    assert wire.ask(server.port, head + WHOLE) == 400
    assert server.has_nothing()
