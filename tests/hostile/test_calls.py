"""F56, F65, F104, F109: calls that come many times at once, name what they may not, or ask for more than there is."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest
import services
import wire
from payloads import CHAT, numbered

BATCH = {"endpoint": CHAT, "completion_window": "24h"}


def post(server: Any, path: str, key: str | None = None, **options: Any) -> httpx2.Response:
    headers = {"authorization": f"Bearer {key or server.key}", **options.pop("headers", {})}
    return httpx2.post(f"http://127.0.0.1:{server.port}{path}", headers=headers, timeout=60, **options)


@pytest.fixture
def file_id(server: Any) -> str:
    server.stack.know_model("scripted")
    return str(server.user().sdk.files.create(file=("a.jsonl", numbered(3)), purpose="batch").id)


def fifty(call: Any) -> list[httpx2.Response]:
    with ThreadPoolExecutor(50) as pool:
        return list(pool.map(lambda _: call(), range(50)))


def test_f56_fifty_calls_with_one_key_make_one_batch(server: Any, file_id: str) -> None:
    key = {"idempotency-key": f"fifty {file_id}"}
    body = {**BATCH, "input_file_id": file_id}
    answers = fifty(lambda: post(server, "/v1/batches", json=body, headers=key))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len(server.rows(f"SELECT FROM batches WHERE source_file_id = '{file_id}'")) == 1
    other = post(server, "/v1/batches", json={**body, "metadata": {"a": "b"}}, headers=key)
    assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_key_reused")


def test_f56_fifty_uploads_with_one_key_make_one_file(server: Any) -> None:
    def upload(count: int = 20) -> httpx2.Response:
        file = {"file": ("fifty.jsonl", numbered(count))}
        return post(server, "/v1/files", data={"purpose": "batch"}, files=file, headers={"idempotency-key": "fifty"})

    answers = fifty(upload)
    assert {answer.status_code for answer in answers} == {200}
    (made,) = {answer.json()["id"] for answer in answers}
    assert [row.id for row in server.rows("SELECT id FROM files WHERE filename = 'fifty.jsonl'")] == [made]
    assert len(server.rows(f"SELECT FROM lines WHERE file_id = '{made}'")) == 20
    assert not server.rows("SELECT FROM lines l WHERE NOT EXISTS (SELECT FROM files f WHERE f.id = l.file_id)")
    assert upload(21).status_code == 409


def problem_of(server: Any, file_id: str, key: str | None = None) -> tuple[str, str]:
    batch = post(server, "/v1/batches", key, json={**BATCH, "input_file_id": file_id}).json()
    (found,) = batch["errors"]["data"]
    assert batch["status"] == "failed"
    return found["code"], found["param"]


def test_f65_a_batch_is_made_from_ones_own_whole_files_only(server: Any, file_id: str) -> None:
    sdk = server.user().sdk
    missing = ("invalid_request", "file_id")
    batch = sdk.batches.create(input_file_id=file_id, endpoint=CHAT, completion_window="24h")
    name = batch.id.removeprefix("batch_")
    assert problem_of(server, file_id, server.stack.key()) == missing, "another project's"
    assert problem_of(server, f"file-{name}-output") == missing, "an output file"
    assert problem_of(server, f"file-{name}-error") == missing, "the error file of a batch that runs"
    for nonsense in ("file-nope", "", batch.id, file_id.upper(), file_id + " ", "x" * 10_000):
        assert problem_of(server, nonsense) == missing
    sdk.files.delete(file_id)
    assert problem_of(server, file_id) == missing, "a deleted file"
    assert sdk.batches.retrieve(batch.id).status == "in_progress", "which this one goes on reading"


def test_f65_an_upload_that_has_not_ended_is_no_file(server: Any) -> None:
    with wire.connection(server.port) as opened:
        head = wire.head("/v1/files", server.key, "Content-Length: 9500000")
        opened.sendall(head + wire.form(numbered(80_000))[:9_000_000])
        unfinished = "SELECT id FROM files WHERE status = 'uploading'"
        services.wait_until(lambda: server.rows(unfinished), "some of it is written")
        assert problem_of(server, server.rows(unfinished)[0].id) == ("invalid_request", "file_id")
    services.wait_until(lambda: not server.rows(unfinished), "it is removed", 20)


def test_f104_no_answer_names_what_is_anothers(server: Any, file_id: str) -> None:
    """Whatever a stranger asks for, of the ids in the answers each is theirs, or was sent by them."""
    mine = server.user().sdk
    batches = [
        mine.batches.create(
            input_file_id=file_id, endpoint=CHAT, completion_window="24h", metadata={"mine": "secret-1"}
        ),
        mine.batches.create(input_file_id="file-secret-2", endpoint=CHAT, completion_window="24h"),
    ]
    mine.batches.cancel(batches[0].id)
    key = server.stack.key()
    results = [f"file-{batch.id.removeprefix('batch_')}-{kind}" for batch in batches for kind in ("output", "error")]
    ids = [file_id, *results, *(batch.id for batch in batches)]
    for asked in ids:
        answers = [
            httpx2.get(f"http://127.0.0.1:{server.port}{path}", headers={"authorization": f"Bearer {key}"}, timeout=60)
            for path in (
                *(f"/v1/files/{asked}", f"/v1/files/{asked}/content", f"/v1/batches/{asked}"),
                *(f"/v1/files?after={asked}", f"/v1/batches?after={asked}", "/v1/files", "/v1/batches"),
            )
        ]
        answers.append(post(server, f"/v1/batches/{asked}/cancel", key))
        answers.append(post(server, "/v1/batches", key, json={**BATCH, "input_file_id": asked}))
        said = " ".join(f"{answer.text} {answer.headers}" for answer in answers)
        assert "secret" not in said
        sent = ids[: ids.index(asked) + 1]
        assert not [each for each in ids if each in said and each not in sent]
    assert {answer.status_code for answer in answers[:5]} == {404}


OWN = {
    "id": "batch_mine",
    "status": "completed",
    "project_id": "theirs",
    "tenant_id": "theirs",
    "role": "admin",
    "model": "other",
    "created_at": 1,
    "expires_at": 9_999_999_999,
    "request_counts": {"total": 1_000_000, "completed": 1_000_000, "failed": 0},
    "output_file_id": "file-theirs",
    "error_file_id": "file-theirs",
    "errors": None,
    "usage": {"total_tokens": 0},
    "window_seconds": 10**9,
    "__class__": "x",
}


def test_f109_what_is_not_the_clients_to_say_is_not_heard(server: Any, file_id: str) -> None:
    plain = post(server, "/v1/batches", json={**BATCH, "input_file_id": file_id}).json()
    made = post(server, "/v1/batches", json={**OWN, **BATCH, "input_file_id": file_id}).json()
    # The ids and times are their own; whatever else differed would be the client's doing.
    own = {"id", "created_at", "in_progress_at", "expires_at"}
    assert {name: made[name] for name in made.keys() - own} == {name: plain[name] for name in plain.keys() - own}
    assert made["id"] != "batch_mine"
    assert made["expires_at"] - made["created_at"] == 86_400
    form = {
        "purpose": "batch",
        "id": "file-mine",
        "status": "error",
        "bytes": "1",
        "project_id": "theirs",
        "expires_at": "1",
    }
    file = post(server, "/v1/files", data=form, files={"file": ("a", numbered(1))}).json()
    assert file["id"] != "file-mine"
    assert (file["bytes"], file["expires_at"]) == (len(numbered(1)), None)
    expiry = {"output_expires_after": {"anchor": "created_at", "seconds": 3_600, "tenant_id": "theirs"}}
    assert post(server, "/v1/batches", json={**BATCH, "input_file_id": file_id, **expiry}).status_code == 400
