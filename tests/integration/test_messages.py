"""Message batches over HTTP, in process: shapes, errors, limits, tenancy, paging, and what a broken call leaves."""

import asyncio
import contextlib
import datetime as dt
import json
from typing import Any

import pytest
import services
from anthropic.types.messages import MessageBatch, MessageBatchIndividualResponse, MessageBatchRequestCounts
from payloads import jsonl, numbered, parse
from starlette.requests import ClientDisconnect
from starlette.testclient import TestClient
from web import serving

from jobs import content, db, fleet, keys, lifecycle
from jobs.outcomes import failure, success

PATH = "/v1/messages/batches"
FIELDS = {
    *("id", "type", "processing_status", "request_counts", "created_at", "expires_at", "ended_at"),
    *("cancel_initiated_at", "archived_at", "results_url"),
}
MESSAGE = {"id": "msg_1", "type": "message", "role": "assistant", "content": [{"type": "text", "text": "é\u0000"}]}


def element(custom_id: str, **params: Any) -> dict[str, Any]:
    full = {"model": "scripted", "max_tokens": 9, "messages": [{"role": "user", "content": "hello"}], **params}
    return {"custom_id": custom_id, "params": full}


def elements(count: int) -> list[dict[str, Any]]:
    return [element(f"row-{number}") for number in range(count)]


class Client:
    """A project's client."""

    def __init__(self, domain: Any, http: TestClient, project: str) -> None:
        with db.transaction(domain.engine) as connection:
            self.key = keys.create(connection, project=project, name="")
        self.http = http

    def call(self, method: str, path: str = "", headers: dict[str, str] | None = None, **options: Any) -> Any:
        sent = {"x-api-key": self.key, "anthropic-version": "2023-06-01", **(headers or {})}
        return self.http.request(method, path if path.startswith("/v1") else PATH + path, headers=sent, **options)

    def create(self, requests: Any, **headers: str) -> Any:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.call("POST", json={"requests": requests}, headers=sent)

    def new(self, count: int = 3) -> str:
        return str(self.create(elements(count)).json()["id"])

    def files(self) -> list[Any]:
        return list(self.call("GET", "/v1/files").json()["data"])

    def batches(self) -> list[Any]:
        return list(self.call("GET", "/v1/batches").json()["data"])


@pytest.fixture
def client(domain: Any, http: TestClient) -> Client:
    return Client(domain, http, "mine")


def error(response: Any) -> tuple[int, str, str]:
    body = response.json()
    assert set(body) == {"type", "error", "request_id"}
    assert body["type"] == "error"
    assert body["request_id"] == response.headers["request-id"] == response.headers["x-request-id"]
    assert body["request_id"].startswith("req_")
    return response.status_code, body["error"]["type"], body["error"]["message"]


def ours(message_batch_id: str) -> str:
    return message_batch_id.replace("msgbatch_", "batch_")


def settle(domain: Any, batch_id: str) -> None:
    with db.transaction(domain.engine) as connection:
        assert lifecycle.settle(connection, ours(batch_id), domain.settings.retention)


def run(domain: Any, batch_id: str, succeed: list[int], fail: dict[int, int] | None = None) -> None:
    """Write outcomes of a batch of one shard: lines that succeed, and lines that fail with a status."""
    shard = domain.shards(ours(batch_id))[0]
    outcomes = [success(line, f"row-{line - 1}", MESSAGE) for line in succeed]
    outcomes += [
        failure(line, f"row-{line - 1}", status_code=status, message="It failed.", code="some_code")
        for line, status in (fail or {}).items()
    ]
    domain.write_outcomes(domain.claim_soon(shard.id), outcomes)
    if len(outcomes) < shard.total:
        domain.execute("UPDATE shards SET state = 'queued', lease_until = NULL WHERE id = :id", id=shard.id)
        domain.execute("UPDATE attempts SET ended_at = app_now(), end_reason = 'released'")


def ended(domain: Any, client: Client, count: int = 3) -> str:
    batch_id = client.new(count)
    run(domain, batch_id, list(range(1, count + 1)))
    settle(domain, batch_id)
    return batch_id


def cancelled(domain: Any, client: Client) -> str:
    """One row succeeded, one failed, two never ran."""
    batch_id = client.new(4)
    run(domain, batch_id, [1], {2: 400})
    client.call("POST", f"/{batch_id}/cancel")
    settle(domain, batch_id)
    return batch_id


def counts(batch: Any) -> dict[str, int]:
    return {name: count for name, count in batch["request_counts"].items() if count}


def rows_left(domain: Any) -> list[int]:
    names = ("files", "lines", "batches", "requests", "shards", "calls")
    return [domain.execute(f"SELECT count(*) AS count FROM {name}")[0].count for name in names]


def test_a_batch_has_every_field(client: Client) -> None:
    response = client.create(elements(3))
    batch = response.json()
    assert response.headers["request-id"] == response.headers["x-request-id"]
    assert set(batch) == FIELDS
    assert (batch["type"], batch["processing_status"]) == ("message_batch", "in_progress")
    assert batch["request_counts"] == {"processing": 3, "succeeded": 0, "errored": 0, "canceled": 0, "expired": 0}
    created, expires = (dt.datetime.fromisoformat(batch[name]) for name in ("created_at", "expires_at"))
    assert expires - created == dt.timedelta(hours=24)
    unset = ("ended_at", "cancel_initiated_at", "archived_at", "results_url")
    assert [batch[name] for name in unset] == [None] * 4
    assert client.call("GET", f"/{batch['id']}").json() == batch


def test_a_batch_is_one_at_the_other_door_too(client: Client) -> None:
    requests = [element("é".encode().hex(), system="\u00fc\n"), element("b", metadata={"user_id": "x"})]
    batch_id = client.create(requests).json()["id"]
    (batch,) = client.batches()
    assert (batch["id"], batch["endpoint"], batch["status"]) == (ours(batch_id), "/v1/messages", "in_progress")
    (file,) = client.files()
    assert (file["id"], file["purpose"], file["filename"]) == (batch["input_file_id"], "batch", "message_batch.jsonl")
    lines = parse(client.call("GET", f"/v1/files/{file['id']}/content").content)
    assert [line["body"] for line in lines] == [each["params"] for each in requests]
    again = {"input_file_id": file["id"], "endpoint": "/v1/messages", "completion_window": "24h"}
    second = client.call("POST", "/v1/batches", json=again).json()["id"]
    assert [each["id"] for each in client.call("GET").json()["data"]] == [
        second.replace("batch_", "msgbatch_"),
        batch_id,
    ]


@pytest.mark.parametrize(
    ("requests", "message"),
    [
        ([], "requests: at least one is needed."),
        ([element("a"), element("a")], "requests.1.custom_id: Another request of the batch has the same custom_id."),
        ([element("a"), {"custom_id": "b"}], "requests.1.params: Field required."),
        ([element("a"), element("b", model=None)], "requests.1.params.model: Model parameter is required."),
        ([element("a", model="")], "requests.0.params.model: Model parameter is required."),
        ([element("a", messages=[])], "requests.0.params.messages: Messages parameter is required."),
        (
            [element("a", messages="hi")],
            "requests.0.params.messages: Invalid type for 'params.messages': expected an array.",
        ),
        ([element("a", stream=True)], "requests.0.params.stream: Streaming is not supported in the Batch API."),
        ([element("a b")], "requests.0.custom_id: Expected `str` matching regex '^[a-zA-Z0-9_-]{1,64}$'."),
        ([element("a", x=json.loads("[" * 70 + "]" * 70))], "requests.0: Not valid JSON, or nested too deep."),
        (
            [element("a"), element("b", model="other")],
            (
                "requests.1.params.model: All requests of a batch must use one model, or models that one worker serves "
                "together; the first line's is 'scripted'."
            ),
        ),
    ],
)
def test_what_is_wrong_is_said_at_the_call_and_nothing_is_left(
    client: Client, domain: Any, requests: Any, message: str
) -> None:
    refused = client.create(requests)
    assert error(refused) == (400, "invalid_request_error", message)
    assert rows_left(domain) == [0] * 6


def test_half_a_surrogate_pair_is_refused(client: Client) -> None:
    body = json.dumps({"requests": [element("a", system="\ud800")]}).encode()
    assert error(client.call("POST", content=body))[:2] == (400, "invalid_request_error")


def test_requests_may_name_models_that_one_worker_serves_together(client: Client, domain: Any) -> None:
    requests = [element("a"), element("b", model="other"), element("c")]
    assert error(client.create(requests))[0] == 400
    with db.transaction(domain.engine) as connection:
        fleet.register(connection, "w", engine="none", models=["other", "scripted"], endpoints=["/v1/messages"])
    batch = client.create(requests).json()
    assert batch["request_counts"]["processing"] == 3
    shards = domain.shards(ours(batch["id"]))
    assert [(shard.model, shard.first_line, shard.total) for shard in shards] == [("scripted", 1, 2), ("other", 2, 1)]
    (listed,) = client.batches()
    assert listed["model"] is None


def test_a_model_that_nobody_serves_is_not_found(client: Client, domain: Any) -> None:
    status, kind, message = error(client.create([element("a", model="claude-9")]))
    assert (status, kind) == (404, "not_found_error")
    assert "'claude-9'" in message
    assert rows_left(domain) == [0] * 6


def test_limits_are_the_settings(domain: Any, database_url: str, servers: services.Servers) -> None:
    with serving(
        database_url, servers, limits={"max_requests": 3, "max_file_bytes": 9_000, "max_line_bytes": 2_000}
    ) as http:
        client = Client(domain, http, "mine")
        status, kind, message = error(client.create(elements(4)))
        assert (status, kind, message) == (400, "invalid_request_error", "requests: The file has more than 3 requests.")
        assert error(client.create([element("a", system="x" * 2_000)]))[2].startswith("requests.0: longer than ")
        assert error(client.create([element("a", system="x" * 9_000)]))[:2] == (413, "request_too_large")
        assert rows_left(domain) == [0] * 6
        assert client.create(elements(3)).status_code == 200


def test_a_body_may_be_larger_than_those_of_other_calls(client: Client) -> None:
    requests = [element(str(number), system="x" * 100_000) for number in range(50)]
    assert client.create(requests).json()["request_counts"]["processing"] == 50
    assert error(client.call("POST", "/msgbatch_x/cancel", content=b"x" * 2_000_000))[0] in (404, 413)


def test_a_body_that_breaks_off_leaves_nothing(client: Client, domain: Any) -> None:
    body = json.dumps({"requests": [element(str(number), system="x" * 1_000) for number in range(25_000)]}).encode()
    seen: list[int] = []

    def committed() -> int:
        return int(domain.execute("SELECT count(*) AS count FROM lines")[0].count)

    async def receive() -> dict[str, Any]:
        if len(seen) < 24:
            seen.append(committed())
            piece = body[(len(seen) - 1) * 1_000_000 : len(seen) * 1_000_000]
            return {"type": "http.request", "body": piece, "more_body": True}
        seen.append(committed())
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        raise AssertionError(message)

    headers = [(b"x-api-key", client.key.encode())]
    scope = {"type": "http", "method": "POST", "path": PATH, "headers": headers, "query_string": b""}

    async def call() -> None:
        with contextlib.suppress(ClientDisconnect):
            await client.http.app(scope, receive, send)

    asyncio.run(call())
    assert max(seen) > 0, "a part of it had been written"
    assert rows_left(domain) == [0] * 6


def test_counts_stay_at_processing_until_the_batch_has_ended(client: Client, domain: Any) -> None:
    batch_id = client.new(3)
    run(domain, batch_id, [1, 2], {})
    assert counts(client.call("GET", f"/{batch_id}").json()) == {"processing": 3}
    canceling = client.call("POST", f"/{batch_id}/cancel").json()
    assert (canceling["processing_status"], counts(canceling)) == ("canceling", {"processing": 3})
    assert canceling["cancel_initiated_at"]
    settle(domain, batch_id)
    batch = client.call("GET", f"/{batch_id}").json()
    assert (batch["processing_status"], counts(batch)) == ("ended", {"succeeded": 2, "canceled": 1})
    assert batch["ended_at"]
    assert batch["results_url"] == f"{PATH}/{batch_id}/results"
    assert client.call("POST", f"/{batch_id}/cancel").json() == batch, "twice changes nothing"


def test_requests_are_counted_by_how_they_ended(client: Client, domain: Any) -> None:
    whole, cut = client.new(3), cancelled(domain, client)
    run(domain, whole, [1], {2: 400, 3: 500})
    settle(domain, whole)
    late = client.new(4)
    run(domain, late, [1], {3: 504})
    domain.execute("UPDATE batches SET expires_at = app_now() WHERE id = :id", id=ours(late))
    settle(domain, late)
    running = client.new(2)
    listed = {batch["id"]: batch for batch in client.call("GET").json()["data"]}
    assert {batch_id: counts(batch) for batch_id, batch in listed.items()} == {
        whole: {"succeeded": 1, "errored": 2},
        cut: {"succeeded": 1, "errored": 1, "canceled": 2},
        late: {"succeeded": 1, "errored": 1, "expired": 2},
        running: {"processing": 2},
    }
    for batch_id, batch in listed.items():
        assert client.call("GET", f"/{batch_id}").json() == batch


def test_a_page_takes_as_many_statements_as_a_batch(client: Client, domain: Any, http: TestClient) -> None:
    from sqlalchemy import event

    for _ in range(3):
        cancelled(domain, client)
    seen: list[str] = []
    database = http.app.state.context.database  # type: ignore[attr-defined]
    event.listen(database, "before_cursor_execute", lambda *parameters: seen.append(parameters[2]))
    taken = []
    for limit in (1, 1, 1000):
        seen.clear()
        assert len(client.call("GET", f"?limit={limit}").json()["data"]) == min(limit, 3)
        taken.append(len(seen))
    # The first one of a connection is not counted.
    assert taken[1] == taken[2] <= 4


def test_results_tell_how_each_request_ended(client: Client, domain: Any) -> None:
    batch_id = client.new(6)
    run(domain, batch_id, [2], {1: 400, 3: 500, 4: 504})
    assert error(client.call("GET", f"/{batch_id}/results"))[:2] == (404, "not_found_error")
    client.call("POST", f"/{batch_id}/cancel")
    settle(domain, batch_id)
    response = client.call("GET", f"/{batch_id}/results")
    assert response.headers["content-type"] == "application/x-jsonl"
    rows = {row["custom_id"]: row["result"] for row in parse(response.content)}
    assert len(rows) == len(response.content.splitlines()) == 6
    assert rows["row-1"] == {"type": "succeeded", "message": MESSAGE}
    failed = rows["row-0"]["error"]
    assert (rows["row-0"]["type"], failed["type"]) == ("errored", "error")
    assert failed["error"] == {
        "type": "invalid_request_error",
        "message": "It failed.",
        "details": {"error_code": "some_code"},
    }
    assert failed["request_id"].startswith("req_")
    assert rows["row-2"]["error"]["error"]["type"] == "api_error"
    assert rows["row-3"]["error"]["error"]["type"] == "timeout_error"
    assert rows["row-4"] == rows["row-5"] == {"type": "canceled"}


def test_results_of_many_pages_are_whole(client: Client, domain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    batch_id = ended(domain, client, 10)
    monkeypatch.setattr(content, "PAGE_BYTES", 300)
    rows = parse(client.call("GET", f"/{batch_id}/results").content)
    assert [row["custom_id"] for row in rows] == [f"row-{number}" for number in range(10)]


def test_results_that_are_not_all_there_break_the_reply_off(client: Client, domain: Any) -> None:
    ended_id = ended(domain, client, 10)
    domain.execute("UPDATE files SET requests = 11 WHERE batch_id IS NOT NULL")
    with pytest.raises(RuntimeError, match="response already started"):
        client.call("GET", f"/{ended_id}/results")


def test_expired_results_are_gone_and_the_batch_is_archived(client: Client, domain: Any) -> None:
    batch_id = cancelled(domain, client)
    before = client.call("GET", f"/{batch_id}").json()
    domain.execute("UPDATE files SET expires_at = app_now() WHERE batch_id IS NOT NULL")
    batch = client.call("GET", f"/{batch_id}").json()
    assert batch["archived_at"]
    assert {**batch, "archived_at": None} == before
    assert error(client.call("GET", f"/{batch_id}/results"))[:2] == (404, "not_found_error")
    assert client.call("DELETE", f"/{batch_id}").status_code == 200
    assert client.call("GET").json()["data"] == []


def test_a_deleted_batch_is_gone_with_its_files(client: Client, domain: Any) -> None:
    other, batch_id = ended(domain, client), cancelled(domain, client)
    assert client.call("DELETE", f"/{batch_id}").json() == {"id": batch_id, "type": "message_batch_deleted"}
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/results"), ("POST", "/cancel")):
        assert error(client.call(method, f"/{batch_id}{path}"))[:2] == (404, "not_found_error")
    assert [batch["id"] for batch in client.call("GET").json()["data"]] == [other]
    assert len(client.files()) == 2, "those of the other batch"
    assert ours(batch_id) in [batch["id"] for batch in client.batches()]


def test_a_batch_that_runs_is_not_deleted(client: Client, domain: Any) -> None:
    batch_id = client.new()
    for _ in range(2):
        refused = client.call("DELETE", f"/{batch_id}")
        assert error(refused)[:2] == (409, "conflict_error")
        assert refused.headers["x-should-retry"] == "false"
        client.call("POST", f"/{batch_id}/cancel")
    assert client.call("GET", f"/{batch_id}").status_code == 200


def test_a_batch_that_has_ended_is_not_cancelled(client: Client, domain: Any) -> None:
    batch_id = ended(domain, client)
    assert error(client.call("POST", f"/{batch_id}/cancel"))[:2] == (409, "conflict_error")


def test_an_input_file_that_another_batch_reads_is_kept(client: Client, domain: Any) -> None:
    batch_id = cancelled(domain, client)
    error_file = f"file-{batch_id.removeprefix('msgbatch_')}-error"
    body = {"input_file_id": error_file, "endpoint": "/v1/messages", "completion_window": "24h"}
    retry = client.call("POST", "/v1/batches", json=body).json()
    assert (
        client.call("GET", f"/{retry['id'].replace('batch_', 'msgbatch_')}").json()["request_counts"]["processing"] == 3
    )
    client.call("DELETE", f"/{batch_id}")
    assert [file["filename"] for file in client.files()] == ["message_batch.jsonl"]


def test_batches_of_other_endpoints_and_failed_ones_are_not_seen(client: Client, domain: Any) -> None:
    chat = client.http.post(
        "/v1/files", headers={"x-api-key": client.key}, data={"purpose": "batch"}, files={"file": ("a", numbered(1))}
    ).json()["id"]
    made = []
    for file_id, endpoint in ((chat, "/v1/chat/completions"), (chat, "/v1/messages"), ("file-x", "/v1/messages")):
        body = {"input_file_id": file_id, "endpoint": endpoint, "completion_window": "24h"}
        made.append(client.call("POST", "/v1/batches", json=body).json())
    assert [batch["status"] for batch in made] == ["in_progress", "failed", "failed"]
    for batch in made:
        name = batch["id"].replace("batch_", "msgbatch_")
        for method, path in (("GET", ""), ("GET", "/results"), ("POST", "/cancel"), ("DELETE", "")):
            assert error(client.call(method, f"/{name}{path}"))[0] == 404
    assert client.call("GET").json() == {"data": [], "has_more": False, "first_id": None, "last_id": None}
    assert client.batches()[2]["status"] == "in_progress", "not cancelled through this door"


def test_batches_of_another_project_are_unknown_in_every_state(client: Client, domain: Any, http: TestClient) -> None:
    running, canceling, over, cut = client.new(), client.new(), ended(domain, client), cancelled(domain, client)
    client.call("POST", f"/{canceling}/cancel")
    stranger = Client(domain, http, "theirs")
    before = client.call("GET").json()
    unknown = "msgbatch_" + "0" * 32
    for method, path in (("GET", ""), ("GET", "/results"), ("POST", "/cancel"), ("DELETE", "")):
        expected = error(stranger.call(method, f"/{unknown}{path}"))
        for batch_id in (running, canceling, over, cut):
            status, kind, message = error(stranger.call(method, f"/{batch_id}{path}"))
            assert (status, kind, message.replace(batch_id, unknown)) == expected
    for cursor in ("after_id", "before_id"):
        assert error(stranger.call("GET", f"?{cursor}={running}"))[0] == 404
    assert stranger.call("GET").json()["data"] == []
    assert client.call("GET").json() == before


@pytest.mark.parametrize("name", ["batch_x", "msgbatch_", "msgbatch_%00", "msgbatch_" + "G" * 32, "%ED%A0%80"])
def test_ids_of_another_form_are_unknown(client: Client, name: str) -> None:
    for method, path in (("GET", ""), ("GET", "/results"), ("POST", "/cancel"), ("DELETE", "")):
        assert error(client.call(method, f"/{name}{path}"))[:2] == (404, "not_found_error")


def test_the_id_of_the_other_door_is_none_here(client: Client) -> None:
    assert error(client.call("GET", f"/{ours(client.new())}"))[0] == 404


def test_pages_go_both_ways_without_gap_and_repeat(client: Client) -> None:
    made = [client.new(1) for _ in range(7)][::-1]

    def ids_of(query: str) -> tuple[list[str], bool]:
        page = client.call("GET", query).json()
        ids = [batch["id"] for batch in page["data"]]
        assert (page["first_id"], page["last_id"]) == ((ids[0], ids[-1]) if ids else (None, None))
        return ids, page["has_more"]

    assert ids_of("?limit=3") == (made[:3], True)
    assert ids_of(f"?limit=3&after_id={made[2]}") == (made[3:6], True)
    assert ids_of(f"?limit=3&after_id={made[5]}") == (made[6:], False)
    assert ids_of(f"?limit=3&before_id={made[6]}") == (made[3:6], True)
    assert ids_of(f"?limit=3&before_id={made[3]}") == (made[:3], False)
    assert ids_of(f"?limit=3&before_id={made[0]}") == ([], False)
    assert ids_of("") == (made, False)


def test_a_deleted_batch_still_marks_its_place(client: Client, domain: Any) -> None:
    oldest = client.new(1)
    gone = ended(domain, client)
    client.call("DELETE", f"/{gone}")
    assert [batch["id"] for batch in client.call("GET", f"?after_id={gone}").json()["data"]] == [oldest]


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", "after_id={0}&before_id={0}"])
def test_parameters_of_a_listing_are_checked(client: Client, query: str) -> None:
    assert error(client.call("GET", "?" + query.format(client.new(1))))[:2] == (400, "invalid_request_error")


def test_every_call_needs_a_key(http: TestClient, client: Client) -> None:
    calls = [("POST", ""), ("GET", ""), *((method, "/x" + path) for method, path in (("GET", ""), ("DELETE", "")))]
    for headers in (
        {},
        {"x-api-key": "pm_aaaaaaaaaaaa_b"},
        {"authorization": "Bearer x"},
        {"authorization": "Basic x"},
    ):
        for method, path in (*calls, ("POST", "/x/cancel"), ("GET", "/x/results")):
            assert error(http.request(method, PATH + path, headers=headers))[:2] == (401, "authentication_error")
    for headers in ({"x-api-key": client.key}, {"authorization": f"Bearer {client.key}"}):
        assert http.get(PATH, headers=headers).status_code == 200


def test_other_errors_have_the_shape_too(client: Client, http: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    assert error(client.call("GET", "/v1/messages/nope"))[:2] == (404, "not_found_error")
    assert error(client.call("PUT"))[:2] == (405, "invalid_request_error")

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("CANARY")

    monkeypatch.setattr("jobs.messages.find", broken)
    status, kind, message = error(client.call("GET", "/msgbatch_" + "0" * 32))
    assert (status, kind) == (500, "api_error")
    assert "CANARY" not in message
    assert set(client.call("GET", "/v1/files/nope").json()) == {"error"}, "the other door keeps its own"


def test_a_repeated_call_makes_no_second_batch(client: Client, domain: Any) -> None:
    first = client.create(elements(2), idempotency_key="k").json()["id"]
    assert client.create(elements(2), idempotency_key="k").json()["id"] == first
    refused = client.create(elements(3), idempotency_key="k")
    assert error(refused)[:2] == (409, "conflict_error")
    assert refused.json()["error"]["details"] == {"error_code": "idempotency_key_reused"}
    second = client.create(elements(2)).json()["id"]
    assert client.create(elements(2), x_stainless_retry_count="1").json()["id"] == second
    assert len(client.files()) == len(client.batches()) == 2
    assert rows_left(domain)[1] == 4, "the lines of two batches"


def test_a_repeated_call_of_a_deleted_batch_makes_a_new_one(client: Client, domain: Any) -> None:
    batch_id = ended(domain, client)
    client.call("DELETE", f"/{batch_id}")
    assert client.create(elements(3), x_stainless_retry_count="1").json()["id"] != batch_id


def test_the_body_limit_of_other_paths_stays(client: Client) -> None:
    refused = client.call("POST", "/v1/messages/other", content=jsonl(elements(1)) * 20_000)
    assert refused.status_code in (404, 413)


def test_every_field_of_the_sdks_types_is_sent_and_no_other(client: Client, domain: Any) -> None:
    batch_id = cancelled(domain, client)
    sent = client.call("GET", f"/{batch_id}").json()
    assert set(sent) == set(MessageBatch.model_fields)
    assert set(sent["request_counts"]) == set(MessageBatchRequestCounts.model_fields)
    rows = parse(client.call("GET", f"/{batch_id}/results").content)
    for row in rows[1:]:
        MessageBatchIndividualResponse.model_validate(row)
