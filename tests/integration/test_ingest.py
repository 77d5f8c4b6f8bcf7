import hashlib
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from payloads import jsonl, numbered, request

from jobs import content, db, files, fleet, retention
from jobs.errors import InvalidRequest, PayloadTooLarge, Unavailable
from jobs.ingest import Ingest


def stored(domain: Any, file_id: str) -> bytes:
    return b"".join(content.stream(domain.engine, content.Source(file_id)))


def problems(domain: Any, data: bytes, **limits: int) -> list[tuple[str, str | None, int | None]]:
    batch = domain.batch(domain.create(domain.upload(data, limits=limits)))
    assert batch.status == "failed"
    assert batch.failed_at
    assert batch.request_counts.total == 0
    return [(error.code, error.param, error.line) for error in batch.errors.data]


LINE = json.dumps(request("CUSTOM")).encode()
ENDS = st.sampled_from([b"\n", b"\r\n", b"\n\n", b"\n  \t\n"])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ends=st.lists(ENDS, min_size=1, max_size=8), last=st.sampled_from([b"", b"\n"]), chunk=st.integers(1, 400))
def test_a_file_is_stored_byte_for_byte(domain: Any, ends: list[bytes], last: bytes, chunk: int) -> None:
    rows = [LINE.replace(b"CUSTOM", f"c{number}".encode()) + end for number, end in enumerate(ends)]
    data = b"\xef\xbb\xbf" + b"".join(rows) + LINE + last
    file_id = domain.upload(data, chunk)
    assert stored(domain, file_id) == data
    (row,) = domain.execute("SELECT * FROM files WHERE id = :id", id=file_id)
    assert (row.bytes, bytes(row.sha256), row.requests) == (len(data), hashlib.sha256(data).digest(), len(ends) + 1)
    assert row.problems is None


def test_separators_of_other_worlds_are_text(domain: Any) -> None:
    prompt = "a\u2028b\u0085c\x0bd\x1ce"
    data = json.dumps(request("a", prompt), ensure_ascii=False).replace("\\u001c", "\x1f").encode()
    data = data.replace(b"\\u000b", b" ").replace(b"\x1f", b" ") + b"\n"
    assert domain.batch(domain.create(domain.upload(data))).request_counts.total == 1


def test_null_characters_in_a_prompt_survive(domain: Any) -> None:
    data = jsonl([request("a", "x\x00y")])
    assert stored(domain, domain.upload(data)) == data


def test_every_bad_line_is_reported_with_its_physical_number(domain: Any) -> None:
    data = (
        jsonl([request("a")])
        + b"\n"
        + b"not json\n"
        + jsonl([{"custom_id": "b", "method": "POST", "url": "/v1/chat/completions"}, request("a")])
        + jsonl([request("c", stream=True)])
    )
    assert problems(domain, data) == [
        ("invalid_json_line", None, 3),
        ("missing_required_parameter", "body", 4),
        ("duplicate_custom_id", "custom_id", 5),
        ("streaming_unsupported", "body.stream", 6),
    ]


def test_reported_lines_are_bounded(domain: Any) -> None:
    data = jsonl([request("a")]) + b"{}\n" * 20
    assert len(problems(domain, data, max_reported_lines=5)) == 5


def test_lines_for_another_endpoint_are_named(domain: Any) -> None:
    other = {**request("b"), "url": "/v1/completions", "body": {"model": "scripted", "prompt": "x"}}
    assert problems(domain, jsonl([request("a"), other])) == [("invalid_url", "url", 2)]


def test_one_model_for_each_batch(domain: Any) -> None:
    data = jsonl([request("a"), request("b", model="other")])
    assert problems(domain, data) == [("model_mismatch", "body.model", 2)]


def test_mismatches_are_bounded(domain: Any) -> None:
    domain.settings = domain.settings.model_copy(
        update={"limits": domain.settings.limits.model_copy(update={"max_reported_lines": 3})}
    )
    data = jsonl(request(f"r{number}", model=f"m{number}") for number in range(20))
    assert problems(domain, data) == [("model_mismatch", "body.model", line) for line in (2, 3, 4)]


def test_a_model_that_nobody_serves_is_named_for_each_line(domain: Any) -> None:
    data = jsonl([request("a", model="gpt")]) + b"\n" + jsonl([request("b", model="gpt")])
    assert problems(domain, data) == [("model_not_found", "body.model", line) for line in (1, 3)]


def test_a_model_that_is_not_served_at_the_endpoint_is_named(domain: Any) -> None:
    with db.transaction(domain.engine) as connection:
        fleet.register(connection, "w", engine="none", models=["embedder"], endpoints=["/v1/embeddings", "/v1/score"])
    batch = domain.batch(domain.create(domain.upload(jsonl([request("a", model="embedder")]))))
    (error,) = batch.errors.data
    assert (error.code, error.param) == ("model_not_found", "body.model")
    assert error.message == (
        "The provided model 'embedder' is not served at '/v1/chat/completions', only at: /v1/embeddings, /v1/score."
    )


def test_endpoints_of_one_worker_are_not_those_of_another(domain: Any) -> None:
    domain.execute("UPDATE workers SET endpoints = '{/v1/embeddings}'")
    with db.transaction(domain.engine) as connection:
        fleet.register(connection, "w", engine="none", models=["other"], endpoints=["/v1/chat/completions"])
    assert problems(domain, jsonl([request("a")])) == [("model_not_found", "body.model", 1)]


def test_a_missing_file_is_an_error_of_the_batch(domain: Any) -> None:
    batch = domain.batch(domain.create("file-nope"))
    assert batch.status == "failed"
    assert [(error.code, error.param) for error in batch.errors.data] == [("invalid_request", "file_id")]


def test_too_many_requests_are_an_error_of_the_batch(domain: Any) -> None:
    assert domain.batch(domain.create(domain.upload(numbered(5), limits={"max_requests": 5}))).status == "in_progress"
    assert problems(domain, numbered(6), max_requests=5) == [("too_many_tasks", None, None)]


def embeddings(*inputs: Any) -> bytes:
    return jsonl(
        {**request(f"row-{number}"), "url": "/v1/embeddings", "body": {"model": "scripted", "input": given}}
        for number, given in enumerate(inputs)
    )


def test_too_many_embedding_inputs_are_an_error_of_the_batch(domain: Any) -> None:
    limits = {"max_embedding_inputs": 4}
    enough = domain.upload(embeddings(["a", "b"], "c", [1, 2, 3]), limits=limits)
    assert domain.batch(domain.create(enough, "/v1/embeddings")).status == "in_progress"
    too_many = domain.upload(embeddings(["a", "b"], "c", ["d", "e"], "f"), limits=limits)
    batch = domain.batch(domain.create(too_many, "/v1/embeddings"))
    assert [(error.code, error.param, error.line) for error in batch.errors.data] == [
        ("too_many_tasks", "body.input", None)
    ]


@pytest.mark.parametrize(
    ("data", "limits", "code"),
    [
        (b"", {}, "empty_file"),
        (b"\n  \n\r\n", {}, "empty_file"),
        (b"<html>\n", {}, "invalid_file_format"),
        (b"\n\nPK\x03\x04\n", {}, "invalid_file_format"),
        (numbered(1) + b"x" * 300, {"max_line_bytes": 200}, "line_too_long"),
        (numbered(1) + b"x" * 300 + b"\n", {"max_line_bytes": 200}, "line_too_long"),
    ],
)
def test_what_is_no_jsonl_is_refused_at_once(domain: Any, data: bytes, limits: dict[str, int], code: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        domain.upload(data, chunk=70, limits=limits)
    assert (caught.value.code, caught.value.param) == (code, "file")
    assert domain.execute("SELECT FROM files") == []
    assert domain.execute("SELECT FROM lines") == []


def test_blank_lines_are_bounded(domain: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        domain.upload(b"\n" * 1_100, limits={"max_requests": 1})
    assert caught.value.code == "too_many_lines"


def test_an_abandoned_upload_is_swept(domain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.blocks.FLUSH_BYTES", 100)
    ingest = Ingest(domain.engine, domain.settings.limits, domain.project_id)
    ingest.feed(numbered(20))
    ingest._blocks._settle()
    domain.execute("UPDATE files SET created_at = app_now() - interval '2 hours'")
    with db.transaction(domain.engine) as connection:
        assert retention.sweep_file(connection, unfinished_seconds=3_600)
    assert domain.execute("SELECT FROM lines") == []
    with pytest.raises(Unavailable, match="took too long"):
        domain.finish(ingest)
    ingest.discard()
    assert domain.execute("SELECT FROM lines") == []


def test_a_block_that_cannot_be_written_fails_the_upload(domain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.blocks.FLUSH_BYTES", 100)
    monkeypatch.setattr("jobs.blocks.COPY_LINES", "COPY nowhere FROM STDIN")
    with pytest.raises(Exception, match="nowhere"):
        domain.upload(numbered(50))
    assert domain.execute("SELECT FROM files") == []


def test_a_line_too_long_is_named(domain: Any) -> None:
    with pytest.raises(InvalidRequest, match="Line 2 is longer than 200 bytes"):
        domain.upload(numbered(1) + b"x" * 300, chunk=70, limits={"max_line_bytes": 200})


def test_one_byte_too_many(domain: Any) -> None:
    data = numbered(3)
    domain.upload(data, limits={"max_file_bytes": len(data)})
    with pytest.raises(PayloadTooLarge):
        domain.upload(data, limits={"max_file_bytes": len(data) - 1})


def test_an_unfinished_upload_is_invisible_and_leaves_nothing(domain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.blocks.FLUSH_BYTES", 100)
    ingest = Ingest(domain.engine, domain.settings.limits, domain.project_id)
    ingest.feed(numbered(20))
    assert domain.execute("SELECT FROM lines")
    with domain.engine.connect() as connection:
        assert files.list_page(
            connection, domain.project_id, purpose=None, after=None, limit=10, newest_first=True
        ) == ([], False)
    ingest.discard()
    assert domain.execute("SELECT FROM lines") == []


def test_lines_are_stored_as_the_server_does_it_best(domain: Any) -> None:
    (row,) = domain.execute(
        "SELECT a.attcompression, a.attstorage, 'lz4' = ANY (s.enumvals) AS has_lz4 FROM pg_attribute a, pg_settings s "
        "WHERE a.attrelid = 'lines'::regclass AND a.attname = 'content' AND s.name = 'default_toast_compression'"
    )
    kind = (row.attcompression, row.attstorage)
    assert [bytes(each) if isinstance(each, bytes) else each.encode() for each in kind] == (
        [b"l", b"x"] if row.has_lz4 else [b"", b"e"]
    )
