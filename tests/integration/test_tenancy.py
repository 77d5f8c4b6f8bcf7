"""Every route of the OpenAPI document, called with the key of another project, in every state of every object.

A route without a case here fails `test_every_route_has_a_case`. An id of another project is an unknown id: the same
status, the same words, the same headers.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from payloads import CHAT, numbered
from starlette.testclient import TestClient
from web import Client, another

from jobs import batches, db, ids, keys, leases, quotas
from jobs.keys import Scope
from jobs.states import BatchStatus

Route = tuple[str, str]
# What is sent in parts here.
PART = numbered(2)
HOOK = {"url": "https://example.com/hook"}
STATES = ("used", "disabled")
MESSAGES = "/v1/messages/batches"
MESSAGE = {"model": "scripted", "max_tokens": 9, "messages": [{"role": "user", "content": "hello"}]}
MESSAGE_BATCH = {"requests": [{"custom_id": f"row-{number}", "params": MESSAGE} for number in range(3)]}


@dataclass
class World:
    """What two projects see. `ids` are those of the first one, by kind and state."""

    owner: Client
    stranger: Client
    ids: dict[str, dict[str, str]]

    def all_ids(self) -> list[str]:
        return [each for states in self.ids.values() for each in states.values()]


def ended(domain: Any, owner: Client, lines: list[int]) -> str:
    """Return a batch of three requests of which `lines` are answered; the others are left."""
    batch_id = owner.batch_id()
    (shard,) = domain.shards(batch_id)
    domain.write(domain.claim_soon(shard.id), lines)
    return batch_id


def files_in_every_state(domain: Any, owner: Client, batch_ids: dict[str, str]) -> dict[str, str]:
    files = {name: owner.file_id() for name in ("uploaded", "deleted", "expired", "uploading")}
    owner.call("DELETE", f"/v1/files/{files['deleted']}")
    domain.execute("UPDATE files SET expires_at = app_now() WHERE id = :id", id=files["expired"])
    domain.execute("UPDATE files SET status = 'uploading' WHERE id = :id", id=files["uploading"])
    for status, batch_id in batch_ids.items():
        for kind in ids.RESULT_KINDS:
            files[f"{kind} of {status}"] = ids.result_file_id(batch_id, kind)
    return files


def batches_in_every_state(domain: Any, owner: Client) -> dict[str, str]:
    """Return a batch in each state, the two that last for one transaction only included."""
    made = {BatchStatus.IN_PROGRESS: ended(domain, owner, [1])}
    made[BatchStatus.FAILED] = str(owner.create(input_file_id="file-nope").json()["id"])
    made[BatchStatus.COMPLETED] = ended(domain, owner, [1, 2, 3])
    domain.settle(made[BatchStatus.COMPLETED])
    made[BatchStatus.CANCELLING] = ended(domain, owner, [1])
    owner.call("POST", f"/v1/batches/{made[BatchStatus.CANCELLING]}/cancel")
    made[BatchStatus.CANCELLED] = owner.batch_id()
    owner.call("POST", f"/v1/batches/{made[BatchStatus.CANCELLED]}/cancel")
    domain.settle(made[BatchStatus.CANCELLED])
    made[BatchStatus.EXPIRED] = owner.batch_id()
    domain.execute("UPDATE batches SET expires_at = app_now() WHERE id = :id", id=made[BatchStatus.EXPIRED])
    domain.settle(made[BatchStatus.EXPIRED])
    made[BatchStatus.FINALIZING] = ended(domain, owner, [1, 2, 3])
    domain.execute("UPDATE batches SET status = 'finalizing' WHERE id = :id", id=made[BatchStatus.FINALIZING])
    made[BatchStatus.VALIDATING] = ids.new_batch_id()
    domain.execute(
        "INSERT INTO batches (id, project_id, input_file_id, endpoint, completion_window) "
        "SELECT :id, project_id, input_file_id, endpoint, completion_window FROM batches WHERE id = :like",
        id=made[BatchStatus.VALIDATING],
        like=made[BatchStatus.COMPLETED],
    )
    return {str(status): batch_id for status, batch_id in made.items()}


def uploads_in_every_state(domain: Any, owner: Client) -> tuple[dict[str, str], dict[str, str]]:
    """Return an upload in each state, and the part of each."""
    body = {"filename": "a.jsonl", "purpose": "batch", "bytes": len(PART), "mime_type": "application/jsonl"}
    made, parts = {}, {}
    for state in ("pending", "completed", "cancelled", "expired"):
        upload_id = made[state] = str(owner.call("POST", "/v1/uploads", json=body).json()["id"])
        files = {"data": ("data", PART)}
        parts[state] = str(owner.call("POST", f"/v1/uploads/{upload_id}/parts", files=files).json()["id"])
    owner.call("POST", f"/v1/uploads/{made['completed']}/complete", json={"part_ids": [parts["completed"]]})
    owner.call("POST", f"/v1/uploads/{made['cancelled']}/cancel")
    domain.execute("UPDATE uploads SET expires_at = app_now() WHERE id = :id", id=made["expired"])
    rows = domain.execute("SELECT status FROM uploads ORDER BY status")
    assert [row.status for row in rows] == ["cancelled", "completed", "pending", "pending"]
    return made, parts


def message_batches_in_every_state(domain: Any, owner: Client) -> dict[str, str]:
    made = {}
    for state, lines in (("in_progress", []), ("canceling", []), ("canceled", [1]), ("ended", [1, 2, 3])):
        made[state] = str(owner.call("POST", MESSAGES, json=MESSAGE_BATCH).json()["id"])
        batch_id = made[state].replace("msgbatch_", "batch_")
        if lines:
            domain.write(domain.claim_soon(domain.shards(batch_id)[0].id), lines)
        if state in ("canceling", "canceled"):
            owner.call("POST", f"{MESSAGES}/{made[state]}/cancel")
        if state == "canceled":
            domain.execute(
                "UPDATE shards SET lease_until = app_now() - interval '1 s' WHERE batch_id = :id", id=batch_id
            )
            with db.transaction(domain.engine) as connection:
                leases.recover(connection)
        if state in ("canceled", "ended"):
            assert domain.settle(batch_id)
    return made


@pytest.fixture
def world(domain: Any, http: TestClient) -> World:
    owner = another(domain.engine, http, "theirs")
    webhooks = {state: str(owner.call("POST", "/v1/webhook_endpoints", json=HOOK).json()["id"]) for state in STATES}
    domain.execute("UPDATE webhook_endpoints SET disabled_at = app_now() WHERE id = :id", id=webhooks["disabled"])
    made = batches_in_every_state(domain, owner)
    assert set(made) == {str(status) for status in BatchStatus}
    uploads, parts = uploads_in_every_state(domain, owner)
    files = files_in_every_state(domain, owner, made) | {
        f"part of {state} upload": each for state, each in parts.items()
    }
    objects = {"batch": made, "file": files, "upload": uploads, "part": parts, "webhook": webhooks}
    objects["message batch"] = message_batches_in_every_state(domain, owner)
    return World(owner, another(domain.engine, http, "mine"), objects)


def seen(response: Any, object_id: str) -> Any:
    """Return all that a caller can tell from a response, but for the id that it named itself."""
    own = ("x-request-id", "request-id", "date")
    headers = {name: value for name, value in response.headers.items() if name not in own}
    text = response.text.replace(object_id, "ID").replace(response.headers["x-request-id"], "REQUEST")
    return response.status_code, text, headers


def same_as_unknown(kind: str, call: Callable[[Client, str], Any]) -> Callable[[World], None]:
    """A case: `call` with each id of a kind is answered as it is with an id that nobody has."""

    def check(world: World) -> None:
        for state, object_id in world.ids[kind].items():
            unknown = re.sub("[0-9a-f]{32}", "f" * 32, object_id)
            foreign, nobodys = call(world.stranger, object_id), call(world.stranger, unknown)
            assert seen(foreign, object_id) == seen(nobodys, unknown), f"{kind} {state}"
            assert foreign.status_code == 404, f"{kind} {state}"

    return check


def by_id(method: str, path: str, kind: str, **options: Any) -> Callable[[World], None]:
    """A case: a route with one id in its path."""
    start, end = path.split("{", 1)[0], path.split("}", 1)[1]
    return same_as_unknown(kind, lambda client, object_id: client.call(method, f"{start}{object_id}{end}", **options))


def listing(path: str, kind: str, after: str = "after") -> Callable[[World], None]:
    """A case: a listing shows nothing, and cannot be entered at another's object."""
    from_there = same_as_unknown(kind, lambda client, object_id: client.call("GET", f"{path}?{after}={object_id}"))

    def check(world: World) -> None:
        assert world.owner.call("GET", path).json()["data"], "there is something to be seen"
        assert world.stranger.call("GET", path).json()["data"] == []
        from_there(world)

    return check


def nobody_is_told(path: str) -> Callable[[World], None]:
    """A case: a route without ids tells the stranger none."""

    def check(world: World) -> None:
        text = world.stranger.call("GET", path).text
        assert not [each for each in world.all_ids() if each in text]

    return check


def create_batch(world: World) -> None:
    """A batch from another's file is created, and fails as one from no file does (contract, L1)."""
    for state, file_id in world.ids["file"].items():
        foreign, nobodys = (world.stranger.create(input_file_id=each).json() for each in (file_id, "file-nope"))
        assert foreign["status"] == nobodys["status"] == "failed", state
        words = [str(each["errors"]["data"]).replace(each["input_file_id"], "ID") for each in (foreign, nobodys)]
        assert words[0] == words[1], state
        assert foreign["model"] is None, state


def create_file(world: World) -> None:
    """The same bytes and the same Idempotency-Key give each project a file of its own."""
    made = set()
    for client in (world.owner, world.stranger):
        client.headers |= {"idempotency-key": "k"}
        made.add(client.upload(numbered(2)).json()["id"])
    assert len(made) == 2


def create_upload(world: World) -> None:
    """An Idempotency-Key of one project is nothing to another."""
    body = {"filename": "a.jsonl", "purpose": "batch", "bytes": 10, "mime_type": "application/jsonl"}
    made = set()
    for client in (world.owner, world.stranger):
        client.headers |= {"idempotency-key": "k"}
        made.add(client.call("POST", "/v1/uploads", json=body).json()["id"])
    assert len(made) == 2


def complete_upload(world: World) -> None:
    """Neither another's upload can be completed, nor one's own with another's parts."""
    path = "/v1/uploads/{upload_id}/complete"
    by_id("POST", path, "upload", json={"part_ids": ["part_x"]})(world)
    body = {"filename": "a.jsonl", "purpose": "batch", "bytes": len(PART), "mime_type": "application/jsonl"}
    own = world.stranger.call("POST", "/v1/uploads", json=body).json()["id"]
    answers = []
    for part_id in (world.ids["part"]["pending"], f"part_{'f' * 32}"):
        answer = world.stranger.call("POST", f"/v1/uploads/{own}/complete", json={"part_ids": [part_id]})
        answers.append((answer.status_code, answer.text.replace(part_id, "ID")))
    assert answers[0] == answers[1]
    assert answers[0][0] == 400


def create_webhook(world: World) -> None:
    """An Idempotency-Key of one project is nothing to another, and what it is told is its own."""
    made = set()
    for client in (world.owner, world.stranger):
        client.headers |= {"idempotency-key": "k"}
        made.add(client.call("POST", "/v1/webhook_endpoints", json=HOOK).json()["id"])
    assert len(made) == 2


def deliveries(world: World) -> None:
    path = "/v1/webhook_endpoints/{endpoint_id}/deliveries"
    by_id("GET", path, "webhook")(world)
    own = world.stranger.call("POST", "/v1/webhook_endpoints", json=HOOK).json()["id"]
    endpoint_id = world.ids["webhook"]["used"]
    theirs = world.owner.call("GET", path.format(endpoint_id=endpoint_id)).json()["data"]
    assert theirs, "there is something to be seen"
    refused = world.stranger.call("GET", f"{path.format(endpoint_id=own)}?after={theirs[0]['id']}")
    assert refused.status_code == 404


def create_message_batch(world: World) -> None:
    """An Idempotency-Key of one project is nothing to another."""
    made = set()
    for client in (world.owner, world.stranger):
        client.headers |= {"idempotency-key": "k"}
        made.add(client.call("POST", MESSAGES, json=MESSAGE_BATCH).json()["id"])
    assert len(made) == 2


CASES: dict[Route, Callable[[World], None]] = {
    ("POST", "/v1/files"): create_file,
    ("GET", "/v1/files"): listing("/v1/files", "file"),
    ("GET", "/v1/files/{file_id}"): by_id("GET", "/v1/files/{file_id}", "file"),
    ("DELETE", "/v1/files/{file_id}"): by_id("DELETE", "/v1/files/{file_id}", "file"),
    ("GET", "/v1/files/{file_id}/content"): by_id("GET", "/v1/files/{file_id}/content", "file"),
    ("POST", "/v1/uploads"): create_upload,
    ("POST", "/v1/uploads/{upload_id}/parts"): by_id(
        "POST", "/v1/uploads/{upload_id}/parts", "upload", files={"data": ("data", PART)}
    ),
    ("POST", "/v1/uploads/{upload_id}/complete"): complete_upload,
    ("POST", "/v1/uploads/{upload_id}/cancel"): by_id("POST", "/v1/uploads/{upload_id}/cancel", "upload"),
    ("POST", "/v1/batches"): create_batch,
    ("GET", "/v1/batches"): listing("/v1/batches", "batch"),
    ("GET", "/v1/batches/{batch_id}"): by_id("GET", "/v1/batches/{batch_id}", "batch"),
    ("POST", "/v1/batches/{batch_id}/cancel"): by_id("POST", "/v1/batches/{batch_id}/cancel", "batch"),
    ("POST", MESSAGES): create_message_batch,
    ("GET", MESSAGES): listing(MESSAGES, "message batch", "after_id"),
    ("GET", f"{MESSAGES}/{{message_batch_id}}"): by_id("GET", f"{MESSAGES}/{{id}}", "message batch"),
    ("DELETE", f"{MESSAGES}/{{message_batch_id}}"): by_id("DELETE", f"{MESSAGES}/{{id}}", "message batch"),
    ("POST", f"{MESSAGES}/{{message_batch_id}}/cancel"): by_id("POST", f"{MESSAGES}/{{id}}/cancel", "message batch"),
    ("GET", f"{MESSAGES}/{{message_batch_id}}/results"): by_id("GET", f"{MESSAGES}/{{id}}/results", "message batch"),
    ("POST", "/v1/webhook_endpoints"): create_webhook,
    ("GET", "/v1/webhook_endpoints"): listing("/v1/webhook_endpoints", "webhook"),
    ("GET", "/v1/webhook_endpoints/{endpoint_id}"): by_id("GET", "/v1/webhook_endpoints/{endpoint_id}", "webhook"),
    ("POST", "/v1/webhook_endpoints/{endpoint_id}"): by_id(
        "POST", "/v1/webhook_endpoints/{endpoint_id}", "webhook", json={"name": "mine now"}
    ),
    ("DELETE", "/v1/webhook_endpoints/{endpoint_id}"): by_id(
        "DELETE", "/v1/webhook_endpoints/{endpoint_id}", "webhook"
    ),
    ("POST", "/v1/webhook_endpoints/{endpoint_id}/rotate_secret"): by_id(
        "POST", "/v1/webhook_endpoints/{endpoint_id}/rotate_secret", "webhook", json={}
    ),
    ("GET", "/v1/webhook_endpoints/{endpoint_id}/deliveries"): deliveries,
    ("GET", "/v1/webhook_event_types"): nobody_is_told("/v1/webhook_event_types"),
    # What workers serve is the same for everybody.
    ("GET", "/v1/models"): nobody_is_told("/v1/models"),
    ("GET", "/v1/models/{model}"): nobody_is_told("/v1/models/scripted"),
    ("GET", "/healthz"): nobody_is_told("/healthz"),
    ("GET", "/readyz"): nobody_is_told("/readyz"),
}
WITHOUT_KEY = {("GET", "/healthz"), ("GET", "/readyz")}


def routes(http: TestClient) -> set[Route]:
    paths = http.get("/openapi.json").json()["paths"]
    return {(method.upper(), path) for path, methods in paths.items() for method in methods}


def test_every_route_has_a_case(http: TestClient) -> None:
    """F103."""
    assert routes(http) == set(CASES)


@pytest.mark.parametrize("route", list(CASES), ids=" ".join)
def test_another_projects_objects_do_not_exist(world: World, route: Route) -> None:
    """F103."""
    before = snapshot(world)
    CASES[route](world)
    # What a creating case made for the owner comes on top.
    assert snapshot(world).items() >= before.items(), "nothing of the owner's has changed"


def snapshot(world: World) -> dict[str, Any]:
    paths = ("/v1/files", "/v1/batches", "/v1/webhook_endpoints", MESSAGES)
    listed = [world.owner.call("GET", path).json()["data"] for path in paths]
    return {each["id"]: each for data in listed for each in data}


def test_every_route_but_the_health_checks_needs_a_key_and_a_scope(domain: Any, http: TestClient) -> None:
    anonymous = Client(http, "pm_000000000000_0")
    powerless = another(domain.engine, http, "mine", scopes=["nothing"])
    for method, path in routes(http) - WITHOUT_KEY:
        assert anonymous.call(method, path).status_code == 401, (method, path)
        refused = powerless.call(method, path)
        assert refused.status_code == 403, (method, path)
        assert "missing_scope" in refused.text
    for method, path in WITHOUT_KEY:
        assert http.request(method, path).status_code == 200


@pytest.mark.parametrize(
    ("scope", "allowed"),
    [
        (Scope.FILES_READ, {("GET", "/v1/files")}),
        (Scope.FILES_WRITE, {("POST", "/v1/files"), ("DELETE", "/v1/files/x")}),
        (Scope.BATCHES_READ, {("GET", "/v1/batches")}),
        (Scope.BATCHES_WRITE, {("POST", "/v1/batches"), ("POST", "/v1/batches/x/cancel")}),
        (Scope.MODELS_READ, {("GET", "/v1/models")}),
        (Scope.WEBHOOKS_READ, {("GET", "/v1/webhook_endpoints")}),
        (Scope.WEBHOOKS_WRITE, {("POST", "/v1/webhook_endpoints")}),
    ],
)
def test_a_scope_opens_its_routes_and_no_other(
    domain: Any, http: TestClient, scope: Scope, allowed: set[Route]
) -> None:
    """F108."""
    client = another(domain.engine, http, "mine", scopes=[scope])
    calls = {
        *(("GET", "/v1/files"), ("POST", "/v1/files"), ("DELETE", "/v1/files/x"), ("GET", "/v1/batches")),
        *(("POST", "/v1/batches"), ("POST", "/v1/batches/x/cancel"), ("GET", "/v1/models")),
        *(("GET", "/v1/webhook_endpoints"), ("POST", "/v1/webhook_endpoints")),
    }
    assert {call for call in calls if client.call(*call).status_code != 403} == allowed


def test_a_message_batch_takes_the_scopes_of_its_files_too(domain: Any, http: TestClient) -> None:
    scopes = [Scope.BATCHES_READ, Scope.BATCHES_WRITE]
    client = another(domain.engine, http, "mine", scopes=scopes)
    for method, path in (("POST", MESSAGES), ("DELETE", f"{MESSAGES}/x"), ("GET", f"{MESSAGES}/x/results")):
        assert client.call(method, path).status_code == 403, path
    assert client.call("GET", MESSAGES).status_code == 200
    whole = another(domain.engine, http, "mine", scopes=[*scopes, Scope.FILES_READ, Scope.FILES_WRITE])
    assert whole.call("POST", MESSAGES, json=MESSAGE_BATCH).status_code == 200


def test_a_message_batch_beyond_the_enqueued_tokens_may_be_sent_again(domain: Any, http: TestClient) -> None:
    client = another(domain.engine, http, "p")
    domain.execute("UPDATE projects SET max_enqueued_tokens = 10 WHERE name = 'p'")
    refused = client.call("POST", MESSAGES, json=MESSAGE_BATCH)
    assert (refused.status_code, refused.json()["error"]["type"]) == (429, "rate_limit_error")
    assert refused.headers["retry-after-ms"] == "10000"
    assert client.call("GET", "/v1/files").json()["data"] == []


def test_f102_a_batch_goes_on_when_its_key_is_revoked_and_its_quota_lowered(domain: Any, http: TestClient) -> None:
    """A key is asked for at the call, a quota when something is added."""
    client = another(domain.engine, http, "mine")
    batch_id = client.batch_id()
    with db.transaction(domain.engine) as connection:
        keys.revoke(connection, client.key)
        quotas.change(connection, "mine", {"max_open_batches": 0, "max_open_requests": 0})
    assert client.call("GET", f"/v1/batches/{batch_id}").status_code == 401
    domain.write(domain.claim_soon(domain.shards(batch_id)[0].id), [1, 2, 3])
    assert domain.settle(batch_id) == "completed"
    new = another(domain.engine, http, "mine")
    assert new.call("GET", f"/v1/batches/{batch_id}").json()["status"] == "completed"
    refused = new.create(input_file_id=new.file_id())
    assert refused.json()["error"]["code"] == "batch_quota_exceeded"


def test_f108_a_key_that_is_revoked_or_expired_opens_nothing_from_then_on(domain: Any, http: TestClient) -> None:
    client = another(domain.engine, http, "mine")
    assert client.call("GET", "/v1/files").status_code == 200
    domain.execute("UPDATE api_keys SET expires_at = app_now() WHERE id = :id", id=client.key.split("_")[1])
    assert client.call("GET", "/v1/files").status_code == 401


def test_too_many_calls_are_told_when_to_come_again(domain: Any, http: TestClient) -> None:
    """F110."""
    client = another(domain.engine, http, "p")
    domain.execute("UPDATE projects SET calls_per_minute = 2 WHERE name = 'p'")
    answers = [client.call("GET", "/v1/files") for _ in range(3)]
    assert [each.status_code for each in answers] == [200, 200, 429]
    assert answers[2].json()["error"]["code"] == "rate_limit_exceeded"
    assert 0 < int(answers[2].headers["retry-after-ms"]) <= 30_000
    assert "x-should-retry" not in answers[2].headers
    assert another(domain.engine, http, "other").call("GET", "/v1/files").status_code == 200


def test_a_full_project_is_told_so(domain: Any, http: TestClient) -> None:
    """F110."""
    client = another(domain.engine, http, "p")
    domain.execute("UPDATE projects SET max_open_batches = 1 WHERE name = 'p'")
    first = client.batch_id()
    refused = client.create(input_file_id=client.file_id())
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "batch_quota_exceeded")
    assert refused.headers["retry-after-ms"] == "10000"
    with db.transaction(domain.engine) as connection:
        batches.cancel(connection, domain.project_id, first)
    domain.settle(first)
    assert client.create(input_file_id=client.file_id(), endpoint=CHAT).status_code == 200
