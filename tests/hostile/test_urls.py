"""F105, F106, F107: odd addresses, headers, names. The key is asked for all the same, and text stays text."""

import contextlib
from typing import Any
from urllib.parse import quote, unquote

import pytest
import wire
from payloads import numbered

STRANGE_TARGETS = [
    "//v1/files",
    "/v1//files",
    "/v1/../v1/files",
    "/v1/./files",
    "/./v1/files",
    "/%2e%2e/v1/files",
    "/v1%2ffiles",
    "/v1/files%2f",
    "/v1/files/",
    "/v1/files;x=y",
    "/V1/FILES",
    "/v1/files%00",
    "/v1/files/..%2fbatches",
    "/healthz/../v1/files",
    "/healthz/%2e%2e/v1/files",
    "/openapi.json/../v1/files",
    "/v1/models/../files",
    "/v1/models/%2e%2e%2ffiles",
    "http://localhost/v1/files",
    "http://localhost/healthz/../v1/files",
    "/v1/files?path=/healthz",
    "/v1/files#/healthz",
]
FORGED = [
    ("Host: healthz",),
    ("Host: localhost/healthz?",),
    ("Host: ",),
    ("Host: a\tb",),
    ("X-Forwarded-For: 127.0.0.1", "X-Forwarded-Proto: https"),
    ("X-Forwarded-Host: localhost", "X-Original-URL: /healthz", "X-Rewrite-URL: /healthz"),
    ("Forwarded: for=127.0.0.1;host=localhost",),
    ("X-HTTP-Method-Override: OPTIONS",),
    ("X-Real-IP: 127.0.0.1", "X-Forwarded-Prefix: /healthz"),
    ("Authorization: Bearer", "Authorization: Basic YTpi"),
    ("Cookie: key=pm_aaaaaaaaaaaa_b",),
    ("Upgrade: websocket", "Connection: Upgrade"),
]


@pytest.mark.parametrize("target", STRANGE_TARGETS)
def test_f107_a_strange_address_opens_nothing(server: Any, target: str) -> None:
    """Without a key: refused, or unknown; never served, never an error of ours."""
    assert wire.ask(server.port, wire.head(target, None, method="GET")) in (400, 401, 404)


@pytest.mark.parametrize("headers", FORGED)
def test_f107_forged_headers_open_nothing(server: Any, headers: tuple[str, ...]) -> None:
    assert wire.ask(server.port, wire.head("/v1/files", None, *headers, method="GET")) in (400, 401)
    assert wire.ask(server.port, wire.head("/v1/batches/x/cancel", None, *headers)) in (400, 401)


@pytest.mark.parametrize(
    "method", ["TRACE", "CONNECT", "OPTIONS", "PATCH", "PUT", "PROPFIND", "HEAD", "get", "G T", "A" * 500]
)
def test_f107_odd_methods_open_nothing(server: Any, method: str) -> None:
    assert wire.ask(server.port, wire.head("/v1/files", None, method=method)) in (400, 401, 405)


def test_f107_the_answer_repeats_no_forged_host(server: Any) -> None:
    with wire.connection(server.port) as opened:
        opened.sendall(wire.head("/v1/files/", server.key, "Host: evil.example", "Connection: close", method="GET"))
        answer = b"".join(iter(lambda: opened.recv(65_536), b""))
    assert b"evil.example" not in answer


INJECTIONS = [
    "' OR '1'='1",
    "'; DROP TABLE files; --",
    "\\'; SELECT pg_sleep(9); --",
    "%' --",
    "$$",
    "{}",
    "%s",
    ":id",
    "\\",
]


@pytest.mark.parametrize("text", INJECTIONS)
def test_f105_sql_in_a_name_is_text(server: Any, text: str) -> None:
    user = server.user()
    for call in (
        lambda: user.sdk.files.retrieve(text),
        lambda: user.sdk.batches.retrieve(text),
        lambda: list(user.sdk.files.list(after=text)),
        lambda: list(user.sdk.batches.list(after=text)),
        lambda: user.sdk.files.content(text),
        lambda: user.sdk.models.retrieve(text),
    ):
        with pytest.raises(Exception, match=r"404|No such|No batch|does not exist|Invalid URL"):
            call()
    assert list(user.sdk.files.list(purpose=text)) == []
    with pytest.raises(Exception, match=r"401|Incorrect API key|provide an API key"):
        server.user(f"pm_{text}_{text}").sdk.files.list()
    with pytest.raises(Exception, match=r"401|Incorrect API key"):
        server.user(server.key + text).sdk.files.list()
    data = numbered(1).replace(b"row-0", text.replace("\\", "\\\\").encode())
    file = user.sdk.files.create(file=(text, data), purpose="batch")
    assert user.sdk.files.content(file.id).content == data
    batch = user.sdk.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={text: text}
    )
    assert user.sdk.batches.retrieve(batch.id).metadata == {text: text}


FILENAMES = [
    "../../etc/passwd",
    "/etc/passwd",
    "..\\..\\windows\\win.ini",
    "CON",
    "%2e%2e%2f",
    "\u202egpj.exe",
    "x" * 4_000,
    "naïve 文件.jsonl",
    "a;b=c",
    "'",
    " ",
    "=1+1",
]


@pytest.mark.parametrize("name", FILENAMES)
def test_f106_a_filename_is_text(server: Any, name: str) -> None:
    """It names nothing on a disk, and comes back quoted (RFC 8187) in a header of ours."""
    user = server.user()
    body = wire.form(numbered(1), filename=name.replace("\\", "\\\\"))
    head = wire.head("/v1/files", server.key, f"Content-Length: {len(body)}")
    assert wire.ask(server.port, head + body) == 200
    file = next(iter(user.sdk.files.list(limit=1)))
    assert file.filename == name
    disposition = user.sdk.files.content(file.id).response.headers["content-disposition"]
    assert disposition == f"attachment; filename*=UTF-8''{quote(name, safe='')}"
    assert unquote(disposition.partition("''")[2]) == name


@pytest.mark.parametrize("name", [b"a\x00b", b"a\r\nX-Evil: 1", b'a"; evil="b', b"\xff\xfe", b"x" * 20_000])
def test_f106_a_filename_that_is_more_than_a_name_adds_nothing(server: Any, name: bytes) -> None:
    body = wire.form(numbered(1), filename="NAME").replace(b"NAME", name)
    with wire.connection(server.port) as opened:
        opened.sendall(wire.head("/v1/files", server.key, f"Content-Length: {len(body)}") + body)
        status = wire.status(opened)
    assert status in (200, 400)
    if status == 200:
        user = server.user()
        answer = user.sdk.files.content(next(iter(user.sdk.files.list(limit=1))).id).response
        assert "x-evil" not in answer.headers
        assert answer.headers["content-disposition"].isascii()
        assert answer.headers["content-disposition"].isprintable()
    with contextlib.suppress(StopIteration):
        assert "\0" not in next(iter(server.user().sdk.files.list(limit=1))).filename
