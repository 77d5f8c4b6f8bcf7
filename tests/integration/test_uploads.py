"""Files that are sent in parts."""

import hashlib
import json
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
import services
from payloads import numbered
from starlette.testclient import TestClient
from web import Client, another, error, serving

from jobs import db, uploads
from jobs.errors import InvalidRequest, NotFound, PromptmillError, Unavailable
from jobs.idempotency import Call
from jobs.protocol import UploadComplete, UploadCreate
from jobs.raw import ROW_BYTES
from jobs.uploads import Part

UPLOAD_FIELDS = {
    *("id", "object", "bytes", "created_at", "expires_at", "filename", "purpose", "status", "file"),
}
DATA = random.Random(2).randbytes(900_000)
THIRDS = [DATA[:300_000], DATA[300_000:600_000], DATA[600_000:]]


class Sender:
    """What a client does with one upload."""

    def __init__(self, client: Client, size: int = len(DATA), purpose: str = "user_data", **more: Any) -> None:
        self.client = client
        body = {"filename": "my file", "purpose": purpose, "bytes": size, "mime_type": "text/plain", **more}
        self.made = client.call("POST", "/v1/uploads", json=body)
        self.path = f"/v1/uploads/{self.made.json().get('id')}"

    def part(self, data: bytes, **headers: str) -> Any:
        sent = self.client.headers | {name.replace("_", "-"): value for name, value in headers.items()}
        return self.client.http.post(f"{self.path}/parts", headers=sent, files={"data": ("upload", data)})

    def parts(self, *pieces: bytes) -> list[str]:
        return [self.part(piece).json()["id"] for piece in pieces]

    def complete(self, *part_ids: str, **more: Any) -> Any:
        return self.client.call("POST", f"{self.path}/complete", json={"part_ids": part_ids, **more})

    def cancel(self) -> Any:
        return self.client.call("POST", f"{self.path}/cancel")


@pytest.fixture
def sender(client: Client) -> Sender:
    return Sender(client)


def later(domain: Any, client: Client, interval: str) -> None:
    app: Any = client.http.app
    domain.later(interval, app.state.context.database)


def sweep(domain: Any) -> int:
    """Remove all that is to be removed; return how many files."""
    swept = 0
    while domain.sweep():
        swept += 1
    return swept


def only_file(domain: Any) -> Any:
    (row,) = domain.execute("SELECT * FROM files WHERE status = 'processed'")
    return row


def test_an_upload_has_every_field(sender: Sender) -> None:
    made = sender.made.json()
    assert set(made) == UPLOAD_FIELDS
    assert (made["object"], made["bytes"], made["status"], made["file"]) == ("upload", len(DATA), "pending", None)
    assert (made["filename"], made["purpose"]) == ("my file", "user_data")
    assert made["expires_at"] == made["created_at"] + 3_600
    part = sender.part(THIRDS[0]).json()
    assert set(part) == {"id", "object", "created_at", "upload_id"}
    assert (part["object"], part["upload_id"]) == ("upload.part", made["id"])


def test_parts_become_the_file_in_the_order_that_is_asked_for(sender: Sender) -> None:
    last, first, middle = sender.parts(THIRDS[2], THIRDS[0], THIRDS[1])
    done = sender.complete(first, middle, last, md5=hashlib.md5(DATA).hexdigest().upper()).json()
    assert set(done) == UPLOAD_FIELDS
    assert done["status"] == "completed"
    file = done["file"]
    assert (file["bytes"], file["filename"], file["purpose"]) == (len(DATA), "my file", "user_data")
    assert file["expires_at"] is None
    assert sender.client.call("GET", f"/v1/files/{file['id']}").json() == file
    assert sender.client.call("GET", f"/v1/files/{file['id']}/content").content == DATA


def test_the_file_of_an_upload_is_as_one_that_is_sent_in_one_call(sender: Sender, domain: Any) -> None:
    sender.complete(*sender.parts(*THIRDS))
    in_parts = only_file(domain)
    sender.client.upload(DATA, purpose="user_data")
    rows = domain.execute("SELECT * FROM files WHERE status = 'processed' ORDER BY created_at")
    assert bytes(rows[0].sha256) == bytes(rows[1].sha256) == hashlib.sha256(DATA).digest()
    sizes = "SELECT octet_length(content) AS size FROM lines WHERE file_id = :id ORDER BY line_no"
    assert [row.size for row in domain.execute(sizes, id=in_parts.id)][:-1] == [ROW_BYTES] * (len(DATA) // ROW_BYTES)


def test_parts_arrive_at_the_same_time(sender: Sender) -> None:
    pieces = [random.Random(number).randbytes(20_000 + number) for number in range(8)]
    whole = Sender(sender.client, sum(map(len, pieces)))
    found: dict[int, str] = {}
    threads = [
        threading.Thread(target=lambda number=number: found.update({number: whole.part(pieces[number]).json()["id"]}))
        for number in reversed(range(8))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    file = whole.complete(*(found[number] for number in range(8))).json()["file"]
    assert whole.client.call("GET", f"/v1/files/{file['id']}/content").content == b"".join(pieces)


def test_requests_are_checked_line_by_line_across_parts(client: Client, domain: Any) -> None:
    data = numbered(5) + b"{}\n" + numbered(6)[len(numbered(5)) :]
    sender = Sender(client, len(data), "batch")
    cut = len(numbered(2)) + 10
    file = sender.complete(*sender.parts(data[:cut], data[cut:])).json()["file"]
    batch = client.create(input_file_id=file["id"]).json()
    assert [(each["code"], each["line"]) for each in batch["errors"]["data"]] == [("missing_required_parameter", 6)]
    assert only_file(domain).requests == 7


def test_a_batch_runs_from_an_upload(client: Client) -> None:
    data = numbered(30)
    sender = Sender(client, len(data), "batch")
    part_ids = sender.parts(*(data[start : start + 1_000] for start in range(0, len(data), 1_000)))
    assert len(part_ids) > 3
    batch = client.create(input_file_id=sender.complete(*part_ids).json()["file"]["id"]).json()
    assert (batch["status"], batch["request_counts"]["total"]) == ("in_progress", 30)


def test_the_file_expires_when_asked_to(client: Client) -> None:
    sender = Sender(client, 1, expires_after={"anchor": "created_at", "seconds": 7_200})
    file = sender.complete(*sender.parts(b"x")).json()["file"]
    assert file["expires_at"] == file["created_at"] + 7_200


@pytest.mark.parametrize(
    ("changes", "status", "param", "code"),
    [
        ({"purpose": "evals"}, 400, "purpose", "invalid_value"),
        ({"bytes": 0}, 400, "bytes", "invalid_value"),
        ({"bytes": 8 * 1024**3 + 1}, 413, "bytes", "file_too_large"),
        ({"bytes": 200_000_001, "purpose": "batch"}, 413, "bytes", "file_too_large"),
        ({"filename": ""}, 400, "filename", "invalid_value"),
        ({"filename": "\ud800"}, 400, "filename", "invalid_value"),
        ({"filename": "\0"}, 400, None, None),
        ({"mime_type": None}, 400, "mime_type", "invalid_value"),
        ({"expires_after": {"anchor": "created_at", "seconds": 1}}, 400, "expires_after.seconds", "invalid_value"),
    ],
)
def test_parameters_of_an_upload_are_checked(
    client: Client, changes: dict[str, Any], status: int, param: str | None, code: str | None
) -> None:
    body = {"filename": "a", "purpose": "vision", "bytes": 1, "mime_type": "image/png", **changes}
    headers = client.headers | {"content-type": "application/json"}
    refused = client.http.post("/v1/uploads", headers=headers, content=json.dumps(body))
    assert error(refused) == (status, param, code)


def test_what_is_missing_is_named(client: Client, sender: Sender) -> None:
    missing = "missing_required_parameter"
    assert error(client.call("POST", "/v1/uploads", json={})) == (400, "filename", missing)
    nothing = client.call("POST", f"{sender.path}/parts", files={"file": ("a", b"x")})
    assert error(nothing) == (400, "data", missing)
    assert error(client.call("POST", f"{sender.path}/complete", json={})) == (400, "part_ids", missing)
    assert error(sender.complete()) == (400, "part_ids", "invalid_value")
    assert error(sender.complete("part_x", md5="abc")) == (400, "md5", "invalid_value")


def test_a_mistake_at_the_end_leaves_the_upload_open(sender: Sender, domain: Any) -> None:
    first, middle, last = sender.parts(*THIRDS)
    other = Sender(sender.client).parts(THIRDS[2])
    file_id = sender.client.file_id()
    md5 = hashlib.md5(DATA).hexdigest()
    for part_ids, more, param in (
        ((first, middle), {}, "bytes"),
        ((first, middle, last, *sender.parts(b"x")), {}, "bytes"),
        ((first, middle, middle), {}, "part_ids"),
        ((first, middle, *other), {}, "part_ids"),
        ((first, middle, file_id), {}, "part_ids"),
        ((first, middle, "part_\ud800"), {}, None),
        ((last, middle, first), {"md5": md5}, "md5"),
    ):
        refused = sender.client.http.post(
            f"{sender.path}/complete",
            headers=sender.client.headers | {"content-type": "application/json"},
            content=json.dumps({"part_ids": part_ids, **more}),
        )
        assert error(refused)[:2] == (400, param), part_ids
    assert len(domain.execute("SELECT FROM files WHERE status = 'processed'")) == 1, "nothing was made"
    assert domain.execute("SELECT FROM files WHERE status = 'uploading'") == []
    assert sender.complete(first, middle, last, md5=md5).json()["status"] == "completed"


def test_a_file_of_parts_that_is_no_jsonl_is_refused(client: Client, domain: Any) -> None:
    sender = Sender(client, 7, "batch")
    assert error(sender.complete(*sender.parts(b"no json"))) == (400, "file", "invalid_file_format")
    assert domain.execute("SELECT FROM files WHERE status <> 'part'") == []
    later_bytes = sender.parts(b"{}\n{}\n\n")
    assert sender.complete(*later_bytes).json()["status"] == "completed"


def test_a_part_is_never_seen(sender: Sender) -> None:
    (part_id,) = sender.parts(THIRDS[0])
    client = sender.client
    assert client.call("GET", "/v1/files").json()["data"] == []
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/content")):
        assert error(client.call(method, f"/v1/files/{part_id}{path}"))[0] == 404
    assert client.create(input_file_id=part_id).json()["status"] == "failed"


def test_parts_are_bounded(client: Client, domain: Any, database_url: str, servers: services.Servers) -> None:
    with serving(database_url, servers, limits={"max_part_bytes": 1_000}) as http:
        sender = Sender(Client(http, client.key), 1_001)
        assert error(sender.part(b"x" * 1_001)) == (413, "data", "file_too_large")
        assert error(sender.part(b"")) == (400, "data", "empty_file")
        assert domain.execute("SELECT FROM files") == []
        assert sender.part(b"x" * 1_000).status_code == 200


def test_a_large_part_passes_the_limit_of_other_bodies(client: Client) -> None:
    sender = Sender(client, 3_000_000)
    file = sender.complete(*sender.parts(b"x" * 3_000_000)).json()["file"]
    assert file["bytes"] == 3_000_000
    too_many = {"part_ids": ["x" * 1_000] * 1_100}
    assert error(client.call("POST", f"{sender.path}/complete", json=too_many))[0] == 413


def test_nothing_goes_on_with_an_upload_that_has_ended(client: Client, domain: Any) -> None:
    done, given_up, late = (Sender(client, 1) for _ in range(3))
    part_ids = {sender: sender.parts(b"x") for sender in (done, given_up, late)}
    assert done.complete(*part_ids[done]).status_code == 200
    assert given_up.cancel().json()["status"] == "cancelled"
    later(domain, client, "61 minutes")
    for sender, status in ((done, "completed"), (given_up, "cancelled"), (late, "expired")):
        refused = sender.part(b"y")
        assert error(refused) == (400, "upload_id", f"upload_{status}")
        assert f"is {status}" in refused.json()["error"]["message"]
    assert error(done.cancel()) == (400, "upload_id", "upload_completed")
    assert error(done.complete("part_other")) == (400, "upload_id", "upload_completed")
    assert given_up.cancel().json()["status"] == "cancelled", "twice changes nothing"
    assert error(given_up.complete(*part_ids[given_up])) == (400, "upload_id", "upload_cancelled")
    assert error(late.complete(*part_ids[late])) == (400, "upload_id", "upload_expired")
    assert error(late.cancel()) == (400, "upload_id", "upload_expired")


def test_a_part_that_ends_after_its_upload_did_is_refused(domain: Any) -> None:
    upload_id, part = new_part(domain)
    with db.transaction(domain.engine) as connection:
        uploads.cancel(connection, domain.project_id, upload_id)
    with pytest.raises(InvalidRequest, match="cancelled"):
        part.finish(call(domain))
    part.discard()
    assert domain.execute("SELECT FROM files") == []


def call(domain: Any) -> Call:
    return Call(domain.caller, "/v1/uploads/x/parts")


def new_part(domain: Any, data: bytes = b"x") -> tuple[str, Part]:
    """Make an upload of twice as many bytes and a part of it that is not yet finished."""
    asked = UploadCreate(filename="a", purpose="user_data", bytes=2 * len(data), mime_type="b")
    with db.transaction(domain.engine) as connection:
        upload_id = uploads.create(connection, domain.project_id, asked, domain.settings)
    part = Part(domain.engine, domain.settings.limits, domain.project_id, upload_id)
    part.feed(data)
    return upload_id, part


def another_part(domain: Any, upload_id: str, data: bytes) -> str:
    part = Part(domain.engine, domain.settings.limits, domain.project_id, upload_id)
    part.feed(data)
    return part.finish(call(domain))


def complete(domain: Any, upload_id: str, *part_ids: str, **more: Any) -> None:
    asked = UploadComplete(part_ids=list(part_ids), **more)
    uploads.complete(domain.engine, domain.settings.limits, domain.project_id, upload_id, asked)


def test_a_part_that_breaks_half_way_leaves_nothing(sender: Sender, domain: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("jobs.blocks.FLUSH_BYTES", 100_000)
    head = b'--x\r\nContent-Disposition: form-data; name="data"; filename="a"\r\n\r\n'
    headers = sender.client.headers | {"content-type": "multipart/form-data; boundary=x"}
    broken = sender.client.http.post(f"{sender.path}/parts", headers=headers, content=head + b"y" * 3_000_000)
    assert error(broken)[0] == 400
    assert domain.execute("SELECT FROM files") == []
    assert domain.execute("SELECT FROM lines") == []


def test_a_part_whose_process_died_is_swept(domain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.blocks.FLUSH_BYTES", 100_000)
    _, part = new_part(domain, b"x" * 1_000_000)
    services.wait_until(lambda: domain.execute("SELECT FROM lines"), "a block is written", 10)
    part._blocks._settle()
    assert sweep(domain) == 0
    domain.later("61 minutes")
    assert sweep(domain) == 1
    assert domain.execute("SELECT FROM lines") == []
    domain.execute("UPDATE uploads SET expires_at = app_now() + interval '1 hour'")
    with pytest.raises(Unavailable, match="took too long"):
        part.finish(call(domain))
    part.discard()


def test_parts_are_swept_once_they_are_not_needed(client: Client, domain: Any) -> None:
    open_one, done, given_up = (Sender(client, 2) for _ in range(3))
    for sender in (open_one, done, given_up):
        sender.parts(b"x", b"y")
    done.complete(*done.parts(b"ab"))
    given_up.cancel()
    assert sweep(domain) == 5, "three of one, two of the other"
    (left,) = domain.execute("SELECT count(*) AS count FROM lines")
    assert left.count == 3, "two parts, and the file"
    assert client.call("GET", f"/v1/files/{only_file(domain).id}/content").content == b"ab"
    later(domain, client, "61 minutes")
    assert sweep(domain) == 0, "a call that completes it may still be reading"
    later(domain, client, "121 minutes")
    assert sweep(domain) == 2
    (left,) = domain.execute("SELECT count(*) AS count FROM lines")
    assert left.count == 1


def test_ids_of_another_project_are_unknown_ids(sender: Sender, domain: Any, http: TestClient) -> None:
    part_ids = sender.parts(*THIRDS)
    stranger = Sender(another(domain.engine, http, "theirs"))
    own_path, stranger.path = stranger.path, sender.path
    for refused in (stranger.part(b"x"), stranger.complete(*part_ids), stranger.cancel()):
        assert error(refused) == (404, "upload_id", None)
    stranger.path = own_path
    refused = stranger.complete(*part_ids)
    assert error(refused) == (400, "part_ids", "invalid_value")
    assert refused.json()["error"]["message"] == f"The upload has no part '{part_ids[0]}'."
    assert sender.complete(*part_ids).status_code == 200
    for path in ("parts", "complete", "cancel"):
        assert error(http.post(f"{sender.path}/{path}"))[0] == 401


def test_a_repeated_upload_is_the_same(client: Client, domain: Any) -> None:
    body = {"filename": "a", "purpose": "vision", "bytes": 1, "mime_type": "image/png"}

    def post(headers: dict[str, str], **more: Any) -> Any:
        return client.http.post("/v1/uploads", json=body | more, headers=client.headers | headers)

    first = post({}).json()["id"]
    assert post({"x-stainless-retry-count": "1"}).json()["id"] == first
    key = {"idempotency-key": "k"}
    second = post(key).json()["id"]
    assert second != first
    assert post(key).json()["id"] == second
    assert error(post(key, bytes=2)) == (409, "Idempotency-Key", "idempotency_key_reused")
    assert len(domain.execute("SELECT FROM uploads")) == 2


def test_a_repeated_part_is_the_same_with_a_key(sender: Sender, domain: Any) -> None:
    first = sender.part(b"x", idempotency_key="k").json()["id"]
    assert sender.part(b"x", idempotency_key="k").json()["id"] == first
    assert error(sender.part(b"y", idempotency_key="k"))[0] == 409
    assert len(domain.execute("SELECT FROM files")) == 1
    assert len(domain.execute("SELECT FROM lines")) == 1


def test_equal_parts_stay_two_however_often_they_are_sent(client: Client) -> None:
    """Both sent at once, the first answer lost: the retry is not taken for the other one."""
    sender = Sender(client, 2)
    sender.part(b"x")
    second = sender.part(b"x").json()["id"]
    first_again = sender.part(b"x", x_stainless_retry_count="1").json()["id"]
    assert sender.complete(first_again, second).json()["status"] == "completed"


def test_completing_twice_makes_one_file(sender: Sender, domain: Any) -> None:
    part_ids = sender.parts(*THIRDS)
    first = sender.complete(*part_ids).json()
    assert sender.complete(*part_ids).json() == first
    sweep(domain)
    assert sender.complete(*part_ids).json() == first, "its parts are gone"
    assert error(sender.complete(*reversed(part_ids))) == (400, "upload_id", "upload_completed")
    assert sender.client.call("GET", "/v1/files").json()["data"] == [first["file"]]
    sender.client.call("DELETE", f"/v1/files/{first['file']['id']}")
    assert sender.complete(*part_ids).json() == {**first, "file": None}


class Meeting:
    """Holds calls that have read all parts until `count` of them have."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
        self._join, self._barrier = uploads._join, threading.Barrier(count)
        monkeypatch.setattr("jobs.uploads._join", self)

    def __call__(self, *arguments: Any) -> Any:
        new = self._join(*arguments)
        self._barrier.wait(30)
        return new


def at_once(*works: Callable[[], object]) -> list[object]:
    """Run everything at the same time; return what came of each."""
    results: list[object] = [None] * len(works)

    def run(number: int) -> None:
        try:
            results[number] = works[number]()
        except PromptmillError as error:
            results[number] = error

    threads = [threading.Thread(target=run, args=[number]) for number in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def two_parts(domain: Any, data: bytes = b"x") -> tuple[str, str, str]:
    upload_id, part = new_part(domain, data)
    return upload_id, part.finish(call(domain)), another_part(domain, upload_id, data)


def test_completing_at_once_makes_one_file(domain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    upload_id, first, second = two_parts(domain)
    Meeting(monkeypatch, 3)
    assert at_once(*[lambda: complete(domain, upload_id, first, second)] * 3) == [None] * 3
    row = only_file(domain)
    assert (row.bytes, row.project_id) == (2, domain.project_id)
    assert domain.execute("SELECT FROM files WHERE status = 'uploading'") == []
    assert sweep(domain) == 2
    assert [row.file_id for row in domain.execute("SELECT DISTINCT file_id FROM lines")] == [row.id]


def test_two_orders_at_once_make_one_file(domain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    upload_id, first, second = two_parts(domain)
    Meeting(monkeypatch, 2)
    results = at_once(
        lambda: complete(domain, upload_id, first, second), lambda: complete(domain, upload_id, second, first)
    )
    assert results.count(None) == 1
    (refused,) = (result for result in results if result is not None)
    assert isinstance(refused, InvalidRequest) and refused.code == "upload_completed"
    only_file(domain)


def before_the_first_byte(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    """Have something happen once between the first look of a call that completes an upload and its first byte."""
    join = uploads._join

    def slow(*arguments: Any) -> Any:
        monkeypatch.setattr("jobs.uploads._join", join)
        act()
        return join(*arguments)

    monkeypatch.setattr("jobs.uploads._join", slow)


def test_a_slower_twin_whose_parts_were_swept_gets_the_same_file(domain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its first look and its first byte the other one completes the upload, and its parts are removed."""
    upload_id, first, second = two_parts(domain)

    def overtake() -> None:
        complete(domain, upload_id, first, second)
        assert sweep(domain) == 2

    before_the_first_byte(monkeypatch, overtake)
    complete(domain, upload_id, first, second)
    only_file(domain)
    assert domain.execute("SELECT FROM files WHERE status = 'uploading'") == []


def test_an_upload_that_is_cancelled_while_it_is_completed_has_no_file(
    domain: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload_id, first, second = two_parts(domain)

    def cancel() -> None:
        with db.transaction(domain.engine) as connection:
            uploads.cancel(connection, domain.project_id, upload_id)

    before_the_first_byte(monkeypatch, cancel)
    with pytest.raises(InvalidRequest, match="cancelled"):
        complete(domain, upload_id, first, second)
    assert domain.execute("SELECT FROM files WHERE status <> 'part'") == []


def test_parts_that_vanish_make_no_short_file(domain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    upload_id, first, second = two_parts(domain)

    def wait() -> None:
        domain.later("121 minutes")
        assert sweep(domain) == 2

    before_the_first_byte(monkeypatch, wait)
    with pytest.raises(Unavailable, match="removed"):
        complete(domain, upload_id, first, second)
    assert domain.execute("SELECT FROM files WHERE status <> 'part'") == []


def test_an_upload_that_expires_while_it_is_completed_is_in_time(domain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    upload_id, first, second = two_parts(domain)

    def wait() -> None:
        domain.later("61 minutes")
        assert sweep(domain) == 0

    before_the_first_byte(monkeypatch, wait)
    complete(domain, upload_id, first, second)
    assert only_file(domain).bytes == 2


def test_no_transaction_is_open_while_parts_are_put_together(domain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    upload_id, first, second = two_parts(domain)
    join = uploads._join
    busy = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in transaction%'"

    def watched(*arguments: Any) -> Any:
        assert domain.execute(busy) == []
        new = join(*arguments)
        assert domain.execute(busy) == []
        return new

    monkeypatch.setattr("jobs.uploads._join", watched)
    complete(domain, upload_id, first, second)


def test_an_unknown_upload_is_not_found(domain: Any, client: Client) -> None:
    with pytest.raises(NotFound):
        complete(domain, "upload_nope", "part_nope")
    assert error(client.call("GET", "/v1/uploads/upload_nope"))[0] == 404
