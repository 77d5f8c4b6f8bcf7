"""F68 to F84: files that are no input, or nearly none. Refused at the call, or line by line before anything runs."""

import json
import unicodedata
from collections.abc import Callable
from typing import Any

import openai
import pytest
import wire
from memory import Peak
from payloads import CHAT, jsonl, numbered, request

GOOD = json.dumps(request("good")).encode() + b"\n"
# A valid line with a place for something else in a body that nobody looks at before the engine does.
ANY = json.dumps(request("a", x="PLACE")).encode()


@pytest.fixture
def client(server: Any) -> Any:
    server.stack.know_model("scripted")
    return server.user().sdk


def refused(client: Any, data: bytes) -> str:
    """Upload what is no input at all; return the code."""
    with pytest.raises(openai.APIStatusError) as caught:
        client.files.create(file=("a.jsonl", data), purpose="batch")
    assert caught.value.status_code == 400
    assert caught.value.param == "file"
    return str(caught.value.code)


def create(client: Any, data: bytes) -> Any:
    """Upload the bytes, see that they come back as they are, and make a batch."""
    file = client.files.create(file=("a.jsonl", data), purpose="batch")
    assert client.files.content(file.id).content == data
    return client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")


def total(client: Any, data: bytes) -> int:
    batch = create(client, data)
    assert batch.errors is None, batch.errors
    return int(batch.request_counts.total)


def problems(client: Any, data: bytes) -> list[tuple[str, str | None, int | None]]:
    batch = create(client, data)
    assert batch.status == "failed"
    assert batch.request_counts.total == 0
    return [(each.code, each.param, each.line) for each in batch.errors.data]


def second(client: Any, line: bytes) -> tuple[str, str | None]:
    """Return what is wrong with a line that follows a good one."""
    ((code, param, number),) = problems(client, GOOD + line + b"\n" + GOOD.replace(b"good", b"too"))
    assert number == 2
    return code, param


@pytest.mark.parametrize("data", [b"", b"\n", b" \t\r\n\n  \n", b"\n" * 1_000])
def test_f68_a_file_without_a_request_is_refused(client: Any, data: bytes) -> None:
    assert refused(client, data) == "empty_file"


def test_f69_one_byte_order_mark_is_taken_off(client: Any) -> None:
    assert total(client, b"\xef\xbb\xbf" + GOOD) == 1
    assert refused(client, b"\xef\xbb\xbf\xef\xbb\xbf" + GOOD) == "invalid_file_format"
    assert second(client, b"\xef\xbb\xbf" + ANY) == ("invalid_json_line", None)


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\n\n", b" \t\r\n\r\n", b"\r\r\n"])
def test_f70_lines_end_as_they_like(client: Any, end: bytes) -> None:
    assert total(client, end.join([ANY, GOOD.strip()])) == 2
    number = 1 + end.count(b"\n")
    assert problems(client, GOOD.strip() + end + b"{") == [("invalid_json_line", None, number)]


@pytest.mark.parametrize("text", ["\u2028", "\u2029", "\u0085", "\x7f", "\ufeff", "\U000e0001"])
def test_f71_separators_of_other_worlds_are_text(client: Any, text: str) -> None:
    assert total(client, ANY.replace(b"PLACE", text.encode()) + b"\n") == 1


@pytest.mark.parametrize("text", [b"\r", b"\x0b", b"\x0c", b"\x1c", b"\x1e", b"\x01"])
def test_f71_bare_control_characters_are_no_json(client: Any, text: bytes) -> None:
    """And they end no line: there is one problem, on one line."""
    assert second(client, ANY.replace(b"PLACE", text)) == ("invalid_json_line", None)


@pytest.mark.parametrize(
    "text", [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\xc0\xaf", b"\x00", b"a\x00b"]
)
def test_f72_what_is_not_utf_8_is_named(client: Any, text: bytes) -> None:
    assert second(client, ANY.replace(b"PLACE", text)) == ("invalid_encoding", None)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_f72_other_encodings_are_named(client: Any, encoding: str) -> None:
    found = problems(client, (GOOD + GOOD).decode().encode(encoding))
    assert found[0] == ("invalid_encoding", None, 1)


def test_f73_a_null_character_may_be_in_a_prompt_and_not_in_a_name(client: Any) -> None:
    assert total(client, jsonl([request("a", "x\x00y")])) == 1
    assert second(client, json.dumps(request("a\x00b")).encode()) == ("invalid_request", "custom_id")


@pytest.mark.parametrize("text", [rb"\ud800", rb"\udc00", rb"\ud800\ud800", rb"\uDFFF", rb"\ud83d x \ude00"])
def test_f74_half_a_surrogate_pair_is_no_json(client: Any, text: bytes) -> None:
    assert second(client, ANY.replace(b"PLACE", text)) == ("invalid_json_line", None)
    assert total(client, ANY.replace(b"PLACE", rb"\ud83d\ude00")) == 1


@pytest.mark.parametrize(
    "number",
    ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 10_000, "01", "1.", ".5", "+1", "0x10", "1_0", "-"],
)
def test_f75_what_is_no_finite_number_is_no_json(client: Any, number: str) -> None:
    assert second(client, ANY.replace(b'"PLACE"', number.encode())) == ("invalid_json_line", None)
    inside = ANY.replace(b'"PLACE"', b'[{"y": [1, ' + number.encode() + b"]}]")
    assert second(client, inside) == ("invalid_json_line", None)


@pytest.mark.parametrize("depth", [63, 1_025, 100_000])
@pytest.mark.parametrize(("begin", "end"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_f76_what_is_too_deep_is_no_json(client: Any, depth: int, begin: bytes, end: bytes) -> None:
    deep = begin * depth + (b"" if end == b"]" else b"1") + end * depth
    assert second(client, ANY.replace(b'"PLACE"', deep)) == ("invalid_json_line", None)
    assert second(client, begin * depth) == ("invalid_json_line", None)


TWICE = [
    b'{"custom_id": "b", ' + ANY[1:],
    ANY.replace(b'"method"', b'"body": {}, "method"'),
    ANY.replace(b'"x"', b'"model": "other", "x"'),
    ANY.replace(b'"PLACE"', b'{"y": {"z": 1, "z": 1}}'),
    ANY.replace(b'"PLACE"', b'[1, [{"z": null, "y": 1, "z": null}]]'),
    ANY.replace(b'"PLACE"', b'{"z": 1, "\\u007a": 2}'),
    ANY.replace(b'"PLACE"', '{"é": 1, "\\u00e9": 2}'.encode()),
    ANY.replace(b'"PLACE"', b'{"": 1, "": 2}'),
    ANY.replace(b'"PLACE"', b'{"\\u0000": 1, "\\u0000": 2}'),
    ANY.replace(b'"role"', b'"role": "system", "role"'),
    ANY.replace(b'"PLACE"', b'{"' + b"k" * 5_000 + b'": 1, "' + b"k" * 5_000 + b'": 2}'),
    ANY.replace(b'"PLACE"', b'["' + b"x" * 2_000_000 + b'", {"z": 1, "z": 2}]'),
    ANY.replace(b'"PLACE"', b'["' + b'\\"' * 600_000 + b'", {"' + b"k" * 999 + b'": 1, "' + b"k" * 999 + b'": 2}]'),
]


@pytest.mark.parametrize("number", range(len(TWICE)))
def test_f77_a_key_that_is_there_twice_is_named(client: Any, number: int) -> None:
    """Parsers keep one of the two, and not all the same one."""
    batch = create(client, GOOD + TWICE[number])
    (problem,) = batch.errors.data
    assert (problem.code, problem.line) == ("invalid_json_line", 2)
    assert "twice in one object" in problem.message
    assert len(problem.message) < 200


def test_f77_equal_keys_of_different_objects_are_fine(client: Any) -> None:
    values = [b'[{"a": 1}, {"a": 1}, {"a": {"a": 1}}]', b'{"a": 1, "A": 1, "\\"a": 1, "a ": 1}', b'"{a: 1, a: 1}"']
    long = b'["' + b"x" * 2_000_000 + b'", {"a": 1, "' + b"k" * 300 + b'": 1, "' + b"k" * 301 + b'": 1}]'
    for value in (*values, long):
        assert total(client, ANY.replace(b'"PLACE"', value)) == 1


def test_f78_a_line_without_end_is_refused_in_bounded_memory(start: Callable[..., Any]) -> None:
    server = start()
    for letters in (b"x" * 1_000_000, "\U0001f600".encode() * 250_000):
        with Peak(server.pid) as peak, wire.connection(server.port) as opened:
            opened.sendall(wire.head("/v1/files", server.key, "Transfer-Encoding: chunked"))
            for piece in (wire.form(b"").removesuffix(wire.END), *[letters] * 60):
                opened.sendall(b"%x\r\n%s\r\n" % (len(piece), piece))
            assert wire.status(opened) == 400
        assert peak.peak - peak.idle < 100_000_000
    assert server.has_nothing()


def test_f78_one_byte_too_many_in_a_line(start: Callable[..., Any]) -> None:
    server = start(PROMPTMILL_LIMITS__MAX_LINE_BYTES=str(len(ANY)))
    server.stack.know_model("scripted")
    sdk = server.user().sdk
    assert total(sdk, ANY + b"\n") == 1
    assert refused(sdk, GOOD + ANY + b" \n") == "line_too_long"
    assert refused(sdk, GOOD + ANY + b" ") == "line_too_long"


def test_f79_fifty_thousand_requests_and_one_more(start: Callable[..., Any]) -> None:
    server = start()
    server.stack.know_model("scripted")
    sdk = server.user().sdk
    assert total(sdk, numbered(50_000)) == 50_000
    assert problems(sdk, numbered(50_001)) == [("too_many_tasks", None, None)]


def test_f80_names_are_compared_as_bytes(client: Any) -> None:
    composed, decomposed = unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "é")
    assert total(client, jsonl(request(name) for name in ("a", "A", composed, decomposed, "a "))) == 5
    twice = create(client, jsonl([request("a"), request("b"), request("a")]))
    (problem,) = twice.errors.data
    assert (problem.code, problem.line) == ("duplicate_custom_id", 3)
    assert "line 1" in problem.message
    escaped = b'{"custom_id": "\\u0061"' + json.dumps(request("a")).encode().removeprefix(b'{"custom_id": "a"')
    assert problems(client, jsonl([request("a")]) + escaped) == [("duplicate_custom_id", "custom_id", 2)]


@pytest.mark.parametrize("name", ["=cmd()", "@SUM(1)", "' OR 1=1 --", "{{7*7}}", "../../x", "a\u202eb", "x" * 512])
def test_f81_a_strange_name_is_a_name(client: Any, name: str) -> None:
    assert total(client, jsonl([request(name)])) == 1


@pytest.mark.parametrize(
    ("name", "code"),
    [
        (None, "missing_required_parameter"),
        (5, "invalid_type"),
        (["a"], "invalid_type"),
        (True, "invalid_type"),
        ("", "invalid_request"),
        ("x" * 513, "invalid_request"),
        ("a\nb", "invalid_request"),
        ("a\x7f", "invalid_request"),
    ],
)
def test_f81_what_is_no_name_is_refused(client: Any, name: Any, code: str) -> None:
    assert second(client, json.dumps({**request("x"), "custom_id": name}).encode()) == (code, "custom_id")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"method": "GET"}, ("invalid_request", "method")),
        ({"method": "post"}, ("invalid_request", "method")),
        ({"url": "/v1/completions"}, ("invalid_url", "url")),
        ({"url": "/v1/nope"}, ("invalid_url", "url")),
        ({"url": "http://127.0.0.1/v1/chat/completions"}, ("invalid_url", "url")),
        ({"url": CHAT + "/"}, ("invalid_url", "url")),
        ({"url": ""}, ("invalid_url", "url")),
    ],
)
def test_f82_another_method_or_url_is_refused(client: Any, change: dict[str, str], problem: tuple[str, str]) -> None:
    assert second(client, json.dumps({**request("x"), **change}).encode()) == problem


@pytest.mark.parametrize(
    ("value", "code"), [(True, "streaming_unsupported"), ("true", "invalid_type"), (1, "invalid_type")]
)
def test_f82_streaming_is_refused(client: Any, value: Any, code: str) -> None:
    assert second(client, json.dumps(request("x", stream=value)).encode()) == (code, "body.stream")


def test_f83_one_known_model_for_a_batch(client: Any) -> None:
    assert problems(client, jsonl([request("a", model="gpt")])) == [("model_not_found", "body.model", 1)]
    assert second(client, json.dumps(request("x", model="other")).encode()) == ("model_mismatch", "body.model")
    for name in ("", None):
        assert second(client, json.dumps(request("x", model=name)).encode()) == ("invalid_request", "body.model")


@pytest.mark.parametrize(
    "line",
    [
        b"[]",
        b"5",
        b"null",
        b'"text"',
        ANY[:-1] + b",}",
        ANY + b"// no",
        b"/* no */" + ANY,
        ANY + ANY,
        b"'" + ANY + b"'",
        ANY[:-1],
    ],
)
def test_f84_what_is_no_json_object_is_refused(client: Any, line: bytes) -> None:
    assert second(client, line) == ("invalid_json_line", None)
    assert refused(client, line) == "invalid_file_format"


def test_f84_other_shapes_of_json_are_refused(client: Any) -> None:
    requests = [request("a"), request("b")]
    assert refused(client, json.dumps(requests).encode()) == "invalid_file_format"
    assert refused(client, json.dumps(requests[0], indent=2).encode()) == "invalid_file_format"
    assert refused(client, b"custom_id,method\na,POST\n") == "invalid_file_format"
    bodies: list[Any] = [[], "text", 5, None]
    for body in bodies:
        code, param = second(client, json.dumps({**request("x"), "body": body}).encode())
        assert param == "body"
        assert code in ("invalid_type", "missing_required_parameter")
