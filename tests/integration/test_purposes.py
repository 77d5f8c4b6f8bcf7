"""Files that are not requests of a batch: kept as the bytes that they are."""

import random
from typing import Any

import pytest
from payloads import numbered
from web import Client, error, serving

from jobs import batches, content, db, files, lifecycle
from jobs.errors import Unavailable
from jobs.raw import ROW_BYTES

PDF = b"%PDF-1.7\n" + random.Random(1).randbytes(700_000)


@pytest.mark.parametrize("purpose", ["vision", "user_data"])
def test_any_bytes_come_back_as_they_were_sent(client: Client, purpose: str) -> None:
    file = client.upload(PDF, purpose=purpose).json()
    assert (file["purpose"], file["bytes"], file["status"]) == (purpose, len(PDF), "processed")
    assert client.call("GET", f"/v1/files/{file['id']}").json() == file
    assert client.call("GET", f"/v1/files/{file['id']}/content").content == PDF


@pytest.mark.parametrize("size", [1, ROW_BYTES - 1, ROW_BYTES, ROW_BYTES + 1, 3 * ROW_BYTES + 17])
@pytest.mark.parametrize("chunk", [100_000, 5_000_000])
def test_bytes_are_kept_in_rows_of_equal_size(domain: Any, size: int, chunk: int) -> None:
    data = random.Random(size).randbytes(size)
    file_id = domain.upload(data, chunk, purpose="user_data")
    rows = domain.execute("SELECT * FROM lines WHERE file_id = :id ORDER BY line_no", id=file_id)
    assert b"".join(bytes(row.content) for row in rows) == data
    assert {len(row.content) for row in rows[:-1]} <= {ROW_BYTES}
    assert {row.custom_id for row in rows} == {None}


def test_any_range_of_bytes_can_be_asked_for(client: Client) -> None:
    path = f"/v1/files/{client.upload(PDF, purpose='vision').json()['id']}/content"
    for first, last in ((0, 0), (ROW_BYTES - 1, ROW_BYTES), (5, len(PDF) - 2), (2 * ROW_BYTES, 2 * ROW_BYTES + 9)):
        response = client.http.get(path, headers=client.headers | {"range": f"bytes={first}-{last}"})
        assert (response.status_code, response.content) == (206, PDF[first : last + 1])


@pytest.mark.parametrize("purpose", ["assistants", "evals", "fine-tune", "batch_output", ""])
def test_other_purposes_are_refused_in_the_words_of_the_contract(client: Client, purpose: str) -> None:
    refused = client.upload(PDF, purpose=purpose)
    assert error(refused) == (400, "purpose", "invalid_value")
    words = f"Invalid value: '{purpose}'. Supported values are: 'batch', 'vision', 'user_data'."
    assert refused.json()["error"]["message"] == words


def test_an_empty_file_is_refused_whatever_it_is_for(client: Client, domain: Any) -> None:
    assert error(client.upload(b"", purpose="vision")) == (400, "file", "empty_file")
    assert domain.execute("SELECT FROM files") == []


def file_first(client: Client, data: bytes, purpose: str) -> Any:
    return client.call("POST", "/v1/files", files=[("file", ("a", data)), ("purpose", (None, purpose))])


def test_a_file_that_comes_before_its_purpose_is_taken_for_a_batch(client: Client, domain: Any) -> None:
    assert file_first(client, numbered(3), "batch").json()["purpose"] == "batch"
    late = file_first(client, numbered(3), "vision")
    assert error(late) == (400, "purpose", "invalid_value")
    assert "Send 'purpose' before 'file'" in late.json()["error"]["message"]
    image = file_first(client, PDF, "vision")
    assert error(image) == (400, "file", "invalid_file_format")
    assert "send 'purpose' before 'file'" in image.json()["error"]["message"]
    assert error(file_first(client, numbered(1), "evals")) == (400, "purpose", "invalid_value")
    assert len(domain.execute("SELECT FROM files")) == 1


def test_a_file_that_is_no_jsonl_is_not_told_of_the_order_when_that_was_right(client: Client) -> None:
    assert "before" not in client.upload(PDF).json()["error"]["message"]


def test_files_are_listed_by_purpose(client: Client, domain: Any) -> None:
    made = {purpose: client.upload(numbered(1), purpose=purpose).json()["id"] for purpose in ("batch", "vision")}
    batch_id = client.create(input_file_id=made["batch"]).json()["id"]
    lease = domain.claim_soon(domain.shards(batch_id)[0].id)
    domain.write(lease, [1])
    with db.transaction(domain.engine) as connection:
        lifecycle.settle(connection, batch_id, domain.settings.retention)
    made["batch_output"] = f"file-{batch_id.removeprefix('batch_')}-output"
    for purpose, file_id in made.items():
        listed = client.call("GET", f"/v1/files?purpose={purpose}").json()["data"]
        assert [file["id"] for file in listed] == [file_id]
    assert client.call("GET", "/v1/files?purpose=user_data").json()["data"] == []
    assert len(client.call("GET", "/v1/files").json()["data"]) == 3


def test_a_batch_of_a_file_for_something_else_fails_and_says_so(domain: Any) -> None:
    batch = domain.batch(domain.create(domain.upload(numbered(2), purpose="user_data")))
    (problem,) = batch.errors.data
    assert (batch.status, problem.code, problem.param, problem.line) == ("failed", "invalid_request", "file_id", None)
    assert "'user_data', not 'batch'" in problem.message


def test_each_purpose_has_a_limit_of_its_own(client: Client, database_url: str, servers: Any) -> None:
    limits = {"max_file_bytes": len(numbered(3)), "max_raw_file_bytes": 1_000}
    with serving(database_url, servers, limits=limits) as http:
        bounded = Client(http, client.key)
        assert bounded.upload(numbered(3)).status_code == 200
        assert error(bounded.upload(numbered(4))) == (413, "file", "file_too_large")
        assert bounded.upload(b"x" * 1_000, purpose="vision").status_code == 200
        assert error(bounded.upload(b"x" * 1_001, purpose="vision")) == (413, "file", "file_too_large")


def test_a_large_file_is_removed_in_several_steps(domain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.blocks.DROP_BYTES", 2 * ROW_BYTES)
    file_id = domain.upload(b"x" * (5 * ROW_BYTES), purpose="user_data")
    other = domain.upload(b"y", purpose="user_data")
    domain.execute("UPDATE files SET deleted_at = app_now() WHERE id = :id", id=file_id)
    left = []
    while domain.sweep():
        left.append(len(domain.execute("SELECT FROM lines WHERE file_id = :id", id=file_id)))
    assert left == [3, 1, 0]
    assert b"".join(content.stream(domain.engine, content.Source(other))) == b"y"


def test_a_large_upload_that_broke_is_removed_in_several_steps(domain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.blocks.DROP_BYTES", 2 * ROW_BYTES)
    monkeypatch.setattr("jobs.blocks.FLUSH_BYTES", 2 * ROW_BYTES)
    ingest = domain.ingest("user_data")
    ingest.feed(b"x" * (7 * ROW_BYTES))
    ingest.discard()
    assert domain.execute("SELECT FROM lines") == []
    assert domain.execute("SELECT FROM files") == []


def test_a_file_of_which_some_was_swept_is_not_published(domain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.blocks.DROP_BYTES", ROW_BYTES)
    monkeypatch.setattr("jobs.blocks.FLUSH_BYTES", ROW_BYTES)
    ingest = domain.ingest("user_data")
    ingest.feed(b"x" * 5 * ROW_BYTES)
    ingest._blocks._settle()
    domain.execute("UPDATE files SET created_at = app_now() - interval '2 hours'")
    assert domain.sweep()
    with pytest.raises(Unavailable):
        domain.finish(ingest, "user_data")
    ingest.discard()


def test_a_file_of_which_some_was_swept_is_no_input_for_a_retry(domain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.blocks.DROP_BYTES", 1)
    file_id = domain.upload(numbered(3))
    batch_id = domain.create(file_id)
    with db.transaction(domain.engine) as connection:
        batches.cancel(connection, domain.project_id, batch_id)
    domain.settle(batch_id)
    with db.transaction(domain.engine) as connection:
        files.mark_deleted(connection, domain.project_id, file_id)
    assert domain.sweep()
    assert domain.execute("SELECT count(*) FROM lines")[0][0] == 2
    retried = domain.batch(domain.create(domain.batch(batch_id).error_file_id))
    assert retried.status == "failed"
