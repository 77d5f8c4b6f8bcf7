"""The HTTP surface, in process: shapes of objects and errors, tenancy, paging."""

from typing import Any

import logs
import pytest
import services
from payloads import CHAT, jsonl, numbered, parse, request
from starlette.testclient import TestClient
from web import Client, another, error, serving

from api.stack.program import free_port
from jobs import telemetry

BATCH_FIELDS = {
    *("id", "object", "endpoint", "model", "errors", "input_file_id", "completion_window", "status"),
    *("output_file_id", "error_file_id", "created_at", "in_progress_at", "expires_at", "finalizing_at"),
    *(
        "completed_at",
        "failed_at",
        "expired_at",
        "cancelling_at",
        "cancelled_at",
        "request_counts",
        "usage",
        "metadata",
    ),
}
FILE_FIELDS = {
    *("id", "object", "bytes", "created_at", "expires_at", "filename", "purpose", "status", "status_details"),
}


def test_a_file_has_every_field(client: Client) -> None:
    data = numbered(3)
    file = client.upload(data).json()
    assert set(file) == FILE_FIELDS
    assert (file["object"], file["bytes"], file["status"]) == ("file", len(data), "processed")
    assert (file["filename"], file["purpose"], file["expires_at"]) == ("my file.jsonl", "batch", None)
    assert client.call("GET", f"/v1/files/{file['id']}").json() == file


def test_a_file_expires_when_asked_to(client: Client) -> None:
    fields = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    file = client.upload(numbered(1), **fields).json()
    assert file["expires_at"] == file["created_at"] + 3600


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"purpose": "assistants"}, "purpose"),
        ({"expires_after[anchor]": "created_at", "expires_after[seconds]": "60"}, "expires_after.seconds"),
        ({"expires_after[anchor]": "now", "expires_after[seconds]": "3600"}, "expires_after.anchor"),
    ],
)
def test_form_fields_are_checked(client: Client, fields: dict[str, str], param: str) -> None:
    assert error(client.upload(numbered(1), **fields)) == (400, param, "invalid_value")
    assert client.call("GET", "/v1/files").json()["data"] == []


def test_a_form_without_file_or_purpose_is_refused(client: Client) -> None:
    missing = "missing_required_parameter"
    nothing = client.call("POST", "/v1/files", files={"purpose": (None, "batch")})
    assert error(nothing) == (400, "file", missing)
    no_purpose = client.call("POST", "/v1/files", files={"file": ("a", numbered(1))})
    assert error(no_purpose) == (400, "purpose", missing)


def test_content_is_downloaded_as_it_was_sent(client: Client) -> None:
    data = jsonl([request("é", "ü")]) + b"\r\n" + numbered(2)
    response = client.call("GET", f"/v1/files/{client.upload(data).json()['id']}/content")
    assert response.content == data
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["content-disposition"] == "attachment; filename*=UTF-8''my%20file.jsonl"


def test_a_deleted_file_is_unknown(client: Client) -> None:
    file_id = client.file_id()
    assert client.call("DELETE", f"/v1/files/{file_id}").json() == {"id": file_id, "object": "file", "deleted": True}
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/content")):
        assert error(client.call(method, f"/v1/files/{file_id}{path}"))[0] == 404


def test_a_batch_has_every_field(client: Client) -> None:
    batch = client.create(input_file_id=client.file_id(), metadata={"team": "a"}).json()
    assert set(batch) == BATCH_FIELDS
    assert (batch["status"], batch["metadata"], batch["errors"]) == ("in_progress", {"team": "a"}, None)
    assert batch["request_counts"] == {"total": 3, "completed": 0, "failed": 0}
    assert batch["expires_at"] == batch["created_at"] + 86_400
    assert batch["usage"]["total_tokens"] == 0
    assert batch["output_file_id"] is None
    assert client.call("GET", f"/v1/batches/{batch['id']}").json() == batch


@pytest.mark.parametrize(
    ("changes", "param", "code"),
    [
        ({"endpoint": "/v1/nope"}, "endpoint", "invalid_value"),
        ({"completion_window": "1h"}, "completion_window", "invalid_value"),
        ({"metadata": {"tags": ["a"]}}, "metadata.tags", "invalid_type"),
        ({"input_file_id": None}, "input_file_id", "invalid_value"),
        (
            {"output_expires_after": {"anchor": "created_at", "seconds": 1}},
            "output_expires_after.seconds",
            "invalid_value",
        ),
    ],
)
def test_parameters_of_a_batch_are_checked(client: Client, changes: dict[str, Any], param: str, code: str) -> None:
    assert error(client.create(**{"input_file_id": "file-x", **changes})) == (400, param, code)
    assert client.call("GET", "/v1/batches").json()["data"] == []


def test_bodies_that_are_no_json_are_refused(client: Client) -> None:
    assert error(client.call("POST", "/v1/batches", content=b"{"))[0] == 400
    assert error(client.call("POST", "/v1/batches", json={}))[1:] == ("input_file_id", "missing_required_parameter")


def test_validation_errors_are_on_the_batch(client: Client) -> None:
    file_id = client.upload(jsonl([request("a"), request("a")])).json()["id"]
    batch = client.create(input_file_id=file_id).json()
    assert batch["status"] == "failed"
    assert batch["errors"]["object"] == "list"
    assert batch["errors"]["data"] == [
        {
            "code": "duplicate_custom_id",
            "message": "Duplicate custom_id: the same value is on line 1.",
            "param": "custom_id",
            "line": 2,
        }
    ]


def test_a_batch_is_cancelled_once(client: Client, domain: Any) -> None:
    batch_id = client.batch_id()
    assert client.call("POST", f"/v1/batches/{batch_id}/cancel").json()["status"] == "cancelling"
    assert client.call("POST", f"/v1/batches/{batch_id}/cancel").status_code == 200
    failed = client.create(input_file_id="file-nope").json()["id"]
    refused = client.call("POST", f"/v1/batches/{failed}/cancel")
    assert error(refused) == (409, None, None)
    assert refused.json()["error"]["message"] == "Cannot cancel a batch with status 'failed'."
    assert refused.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("key", [None, "Bearer", "Bearer x", "Basic abc", "Bearer pm_aaaaaaaaaaaa_b"])
def test_every_call_needs_a_key(http: TestClient, key: str | None) -> None:
    headers = {"authorization": key} if key else {}
    for path in ("/v1/files", "/v1/batches", "/v1/models", "/v1/files/x/content"):
        assert error(http.get(path, headers=headers)) == (401, None, "invalid_api_key")
    assert error(http.post("/v1/batches", headers=headers, json={}))[0] == 401
    assert error(http.post("/v1/files", headers=headers))[0] == 401


def test_ids_of_another_project_are_unknown_ids(client: Client, domain: Any, http: TestClient) -> None:
    file_id, batch_id = client.file_id(), client.batch_id()
    result_id = f"file-{batch_id.removeprefix('batch_')}-output"
    stranger = another(domain.engine, http, "theirs")
    for method, path in (
        ("GET", f"/v1/files/{file_id}"),
        ("GET", f"/v1/files/{file_id}/content"),
        ("DELETE", f"/v1/files/{file_id}"),
        ("GET", f"/v1/files/{result_id}"),
        ("GET", f"/v1/files/{result_id}/content"),
        ("GET", f"/v1/batches/{batch_id}"),
        ("POST", f"/v1/batches/{batch_id}/cancel"),
        ("GET", f"/v1/files?after={file_id}"),
        ("GET", f"/v1/batches?after={batch_id}"),
    ):
        assert error(stranger.call(method, path))[0] == 404, path
    assert stranger.call("GET", "/v1/files").json()["data"] == []
    assert stranger.call("GET", "/v1/batches").json()["data"] == []
    assert stranger.create(input_file_id=file_id).json()["errors"]["data"][0]["param"] == "file_id"
    assert client.call("GET", f"/v1/files/{file_id}").status_code == 200


@pytest.mark.parametrize("kind", ["files", "batches"])
def test_pages_have_no_gap_and_no_repeat(client: Client, kind: str) -> None:
    """F66: also while objects are added."""
    make = client.file_id if kind == "files" else client.batch_id
    made = [make() for _ in range(5)]
    if kind == "batches":
        client.call("GET", "/v1/files")
    seen: list[str] = []
    after = ""
    while True:
        page = client.call("GET", f"/v1/{kind}?limit=2{after}").json()
        seen += [each["id"] for each in page["data"]]
        assert (page["object"], page["first_id"], page["last_id"]) == ("list", seen[-len(page["data"])], seen[-1])
        if len(seen) == 2:
            make()
        if not page["has_more"]:
            break
        after = f"&after={page['last_id']}"
    assert seen == made[::-1]


def test_files_are_listed_oldest_first_when_asked(client: Client) -> None:
    made = [client.file_id() for _ in range(3)]
    assert [file["id"] for file in client.call("GET", "/v1/files?order=asc").json()["data"]] == made
    assert client.call("GET", "/v1/files?purpose=vision").json()["data"] == []


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=x"])
def test_a_limit_out_of_bounds_is_named(client: Client, query: str) -> None:
    assert error(client.call("GET", f"/v1/batches?{query}")) == (400, "limit", "invalid_value")


def test_results_can_be_read_while_the_batch_runs(client: Client, domain: Any) -> None:
    batch_id = client.batch_id()
    output = f"file-{batch_id.removeprefix('batch_')}-output"
    assert client.call("GET", f"/v1/files/{output}").json()["bytes"] == 0
    lease = domain.claim_soon(domain.shards(batch_id)[0].id)
    domain.write(lease, [2])
    content = client.call("GET", f"/v1/files/{output}/content").content
    assert [row["custom_id"] for row in parse(content)] == ["row-1"]
    file = client.call("GET", f"/v1/files/{output}").json()
    assert (file["bytes"], file["purpose"]) == (len(content), "batch_output")
    assert client.call("GET", f"/v1/batches/{batch_id}").json()["output_file_id"] is None


def test_the_output_of_a_running_batch_cannot_be_deleted(client: Client) -> None:
    output = f"file-{client.batch_id().removeprefix('batch_')}-output"
    assert error(client.call("DELETE", f"/v1/files/{output}"))[0] == 409


def test_a_download_says_how_long_it_is(client: Client) -> None:
    data = numbered(3)
    response = client.call("GET", f"/v1/files/{client.upload(data).json()['id']}/content")
    assert response.headers["content-length"] == str(len(data))


def test_characters_that_cannot_be_stored_are_refused(client: Client) -> None:
    """Each of these was a 500; the metadata made every listing of its project a 500 for good."""
    for path in ("/v1/files/%00", "/v1/batches/%00", "/v1/batches?after=%00", "/v1/files?purpose=%00"):
        assert error(client.call("GET", path))[0] in (400, 404), path
    assert error(client.create(input_file_id="a\0b"))[0] == 400
    bad = b'{"input_file_id": "x", "endpoint": "%s", "completion_window": "24h", "metadata": {"k": "\\ud800"}}'
    headers = {"content-type": "application/json", **client.headers}
    for endpoint in (b"/v1/chat/completions", b"\\ud800"):
        assert error(client.http.post("/v1/batches", content=bad % endpoint, headers=headers))[0] == 400
    bad = b'{"input_file_id": "\\ud800", "endpoint": "/v1/chat/completions", "completion_window": "24h"}'
    assert error(client.http.post("/v1/batches", content=bad, headers=headers))[0] == 400
    assert client.call("GET", "/v1/batches").json()["data"] == []
    digits = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "9" * 5_000}
    assert error(client.upload(numbered(1), **digits))[0] == 400


def test_models_are_what_workers_serve(client: Client, domain: Any) -> None:
    models = client.call("GET", "/v1/models").json()
    assert [(model["id"], model["object"]) for model in models["data"]] == [("scripted", "model")]
    assert client.call("GET", "/v1/models/scripted").json() == models["data"][0]
    assert error(client.call("GET", "/v1/models/org/other")) == (404, "model", "model_not_found")
    domain.execute("UPDATE workers SET seen_at = app_now() - interval '2 days'")
    assert client.call("GET", "/v1/models").json()["data"] == []


def test_health_needs_no_key(http: TestClient) -> None:
    assert http.get("/healthz").json() == {"status": "ok"}
    assert http.get("/readyz").json() == {"status": "ok"}


def test_an_unknown_url_has_the_shape_of_an_error(client: Client) -> None:
    assert error(client.call("GET", "/v1/nope"))[0] == 404
    assert error(client.call("PUT", "/v1/files"))[0] == 405


def test_a_database_that_is_away_is_a_503_that_may_be_retried(servers: services.Servers) -> None:
    with serving(f"postgresql://127.0.0.1:{free_port()}/x", servers) as client:
        assert client.get("/healthz").status_code == 200
        refused = client.get("/readyz")
        assert error(refused) == (503, None, "service_unavailable")
        assert refused.headers["retry-after"] == "5"


def test_a_bug_is_a_500_without_its_words(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("CANARY")

    monkeypatch.setattr("jobs.files.find", broken)
    refused = client.call("GET", "/v1/files/file-x")
    assert error(refused)[0] == 500
    assert "CANARY" not in refused.text


def test_the_log_has_no_words_of_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with logs.configured():
        try:
            raise RuntimeError("CANARY") from ValueError("CANARY")
        except RuntimeError:
            telemetry.get_logger("test").exception("broken")
    logged = capsys.readouterr().err
    assert "RuntimeError" in logged
    assert "ValueError" in logged
    assert "CANARY" not in logged


def test_a_large_body_is_refused_before_it_is_read(http: TestClient) -> None:
    refused = http.post("/v1/batches", content=b'{"metadata": "' + b"x" * 2_000_000 + b'"}')
    assert error(refused)[0] == 413


def test_partial_output_is_shown_when_the_setting_says_so(
    domain: Any, client: Client, database_url: str, servers: services.Servers
) -> None:
    batch_id = client.batch_id()
    domain.write(domain.claim_soon(domain.shards(batch_id)[0].id), [2])
    with serving(database_url, servers, api={"show_partial_output": True}) as http:
        batch = Client(http, client.key).call("GET", f"/v1/batches/{batch_id}").json()
    assert batch["output_file_id"] == f"file-{batch_id.removeprefix('batch_')}-output"
    assert batch["error_file_id"] is None


def test_a_repeated_call_makes_no_second_batch(client: Client) -> None:
    body = {"input_file_id": client.file_id(), "endpoint": CHAT, "completion_window": "24h"}

    def post(headers: dict[str, str], **more: Any) -> Any:
        return client.http.post("/v1/batches", json=body | more, headers=client.headers | headers)

    key = {"idempotency-key": "k-1"}
    first = post(key).json()["id"]
    assert post(key).json()["id"] == first
    refused = post(key, metadata={"a": "b"})
    assert error(refused) == (409, "Idempotency-Key", "idempotency_key_reused")
    assert refused.headers["x-should-retry"] == "false"
    second = post({"x-stainless-retry-count": "0"}).json()["id"]
    assert second != first
    assert post({"x-stainless-retry-count": "1"}).json()["id"] == second
    assert post({}).json()["id"] not in (first, second)
    assert len(client.call("GET", "/v1/batches").json()["data"]) == 3
    assert error(post({"idempotency-key": "x" * 256}))[0] == 400


def test_a_repeated_upload_makes_no_second_file(client: Client, domain: Any) -> None:
    def post(count: int, headers: dict[str, str]) -> Any:
        file = {"file": ("a.jsonl", numbered(count))}
        sent = client.headers | headers
        return client.http.post("/v1/files", headers=sent, data={"purpose": "batch"}, files=file)

    key = {"idempotency-key": "k"}
    first = post(3, {}).json()["id"]
    assert post(3, {"x-stainless-retry-count": "2"}).json()["id"] == first
    assert post(4, key).json()["id"] == post(4, key).json()["id"]
    assert error(post(5, key))[0] == 409
    assert len(client.call("GET", "/v1/files").json()["data"]) == 2
    (lines,) = domain.execute("SELECT count(*) AS count FROM lines")
    assert lines.count == 7
    client.call("DELETE", f"/v1/files/{first}")
    fresh = post(3, {"x-stainless-retry-count": "1"})
    assert fresh.status_code == 200
    assert fresh.json()["id"] != first, "the one that it repeats is gone"


def test_a_part_of_a_file_can_be_asked_for(client: Client) -> None:
    data = numbered(20)
    path = f"/v1/files/{client.upload(data).json()['id']}/content"

    def get(**headers: str) -> Any:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        return client.http.get(path, headers=client.headers | sent)

    whole = get()
    assert (whole.headers["accept-ranges"], whole.content) == ("bytes", data)
    etag = whole.headers["etag"]
    part = get(range="bytes=100-299")
    assert (part.status_code, part.content) == (206, data[100:300])
    assert part.headers["content-range"] == f"bytes 100-299/{len(data)}"
    assert part.headers["content-length"] == "200"
    assert get(range="bytes=-5").content == data[-5:]
    assert get(range="bytes=0-1,5-6").content == data
    assert get(range="bytes=0-1", if_range=etag).status_code == 206
    assert get(range="bytes=0-1", if_range='"other"').content == data
    assert get(if_none_match=etag).status_code == 304
    beyond = get(range=f"bytes={len(data)}-")
    assert error(beyond) == (416, "Range", None)
    assert beyond.headers["content-range"] == f"bytes */{len(data)}"


def test_a_file_that_is_still_written_has_no_parts(client: Client, domain: Any) -> None:
    batch_id = client.batch_id()
    domain.write(domain.claim_soon(domain.shards(batch_id)[0].id), [2])
    path = f"/v1/files/file-{batch_id.removeprefix('batch_')}-output/content"
    response = client.http.get(path, headers=client.headers | {"range": "bytes=0-3"})
    assert response.status_code == 200
    assert "etag" not in response.headers
    assert len(response.content) > 4
