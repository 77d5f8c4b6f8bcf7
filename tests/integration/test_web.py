"""The web page, in process: who gets in, what forms are taken, what is shown to whom, and that all of it is escaped."""

import re
from typing import Any

import pytest
import services
from payloads import jsonl, numbered, request
from starlette.testclient import TestClient
from web import Client, another, serving

from api.web import guard, routes
from jobs.keys import Scope
from jobs.outcomes import failure

OWN = {"origin": "http://testserver"}
PAGES = ("/", "/ui/files", "/ui/workers", "/ui/batches/batch_x", "/ui/files/file-x", "/ui/files/file-x/content")
HOSTILE = "<script>alert(1)</script>\"'&"


class Visitor:
    """A browser without scripts."""

    def __init__(self, http: TestClient, key: str = "") -> None:
        self.http, self.cookies = http, {}
        if key:
            answer = self.post("/ui/login", key=key)
            assert answer.status_code == 303, answer.text
            self.cookies = {"promptmill_session": answer.cookies["promptmill_session"]}
            http.cookies.clear()

    def headers(self, more: dict[str, str]) -> dict[str, str]:
        cookie = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        return {**more, **({"cookie": cookie} if cookie else {})}

    def get(self, path: str, **headers: str) -> Any:
        return self.http.get(path, headers=self.headers(headers), follow_redirects=False)

    def post(self, path: str, sent_from: dict[str, str] | None = None, **fields: str) -> Any:
        headers = self.headers(OWN if sent_from is None else sent_from)
        return self.http.post(path, data=fields, headers=headers, follow_redirects=False)

    def upload(self, data: bytes, name: str = "my file.jsonl") -> Any:
        return self.http.post(
            "/ui/files",
            headers=self.headers(OWN),
            follow_redirects=False,
            data={"purpose": "batch"},
            files={"file": (name, data)},
        )

    def create(self, path: str) -> str:
        """Press the button of a file's page."""
        fields = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', self.get(path).text))
        answer = self.post("/ui/batches", **fields)
        assert answer.status_code == 303, answer.text
        return str(answer.headers["location"])


@pytest.fixture
def visitor(client: Client) -> Visitor:
    return Visitor(client.http, client.key)


def test_nobody_sees_anything_before_the_log_in(http: TestClient, client: Client) -> None:
    batch_id = client.batch_id()
    for path in (*PAGES, f"/ui/batches/{batch_id}", f"/ui/batches/{batch_id}/requests/1"):
        answer = Visitor(http).get(path)
        assert answer.status_code == 303, path
        assert answer.headers["location"] == f"/ui/login?next={path}"
        assert not answer.text
    login = Visitor(http).get("/ui/login")
    assert login.status_code == 200
    assert batch_id not in login.text and "Batches" not in login.text


def test_every_page_but_the_log_in_asks_who_is_there(http: TestClient) -> None:
    pages = {
        (*sorted(route.methods or ()), route.path) for route in routes.router.routes if isinstance(route, guard.Page)
    }
    assert {("GET", "/"), ("POST", "/ui/files"), ("POST", "/ui/batches/{batch_id}/retry")} < pages
    asked = {"input_file_id": "x", "endpoint": "x", "form_id": "x"}
    for method, path in pages - {("GET", "/ui/login"), ("POST", "/ui/login"), ("POST", "/ui/logout")}:
        place = re.sub("{[^}]+}", "1", path)
        answer = Visitor(http).get(place) if method == "GET" else Visitor(http).post(place, None, **asked)
        assert answer.status_code == 303, path
        assert answer.headers["location"].startswith("/ui/login?next=/"), path


def test_a_log_in_is_a_sealed_cookie_that_scripts_cannot_read(http: TestClient, client: Client) -> None:
    answer = Visitor(http).post("/ui/login", key=f" {client.key}\n", next="/ui/workers")
    assert answer.headers["location"] == "/ui/workers"
    cookie = answer.headers["set-cookie"]
    assert client.key not in cookie and client.key.split("_")[1] not in cookie
    assert "HttpOnly" in cookie and "SameSite=lax" in cookie and "Max-Age=43200" in cookie
    assert "Secure" not in cookie, "plain http"
    behind = Visitor(http).post("/ui/login", {**OWN, "x-forwarded-proto": "https"}, key=client.key)
    assert "Secure" in behind.headers["set-cookie"]


@pytest.mark.parametrize("place", ["https://evil.example/", "//evil.example", "/ui/\\evil", "/v1/files", "/ui/login"])
def test_a_log_in_leads_nowhere_else(http: TestClient, client: Client, place: str) -> None:
    assert Visitor(http).post("/ui/login", key=client.key, next=place).headers["location"] == "/"


def test_a_wrong_key_is_told_so_and_not_repeated(http: TestClient) -> None:
    answer = Visitor(http).post("/ui/login", key=HOSTILE)
    assert answer.status_code == 401
    assert "set-cookie" not in answer.headers
    assert "alert(1)" not in answer.text
    assert "Incorrect API key provided." in answer.text


def test_whoever_fails_too_often_has_to_wait_and_keeps_nobody_out(http: TestClient, client: Client) -> None:
    answers = [Visitor(http).post("/ui/login", key="pm_x_y").status_code for _ in range(11)]
    assert answers == [401] * 10 + [429]
    assert Visitor(http).post("/ui/login", key=client.key).status_code == 303


def test_a_session_ends_with_the_key_the_log_out_and_in_time(
    domain: Any, database_url: str, servers: services.Servers, visitor: Visitor, client: Client
) -> None:
    assert visitor.get("/").status_code == 200
    out = visitor.post("/ui/logout")
    assert out.headers["location"] == "/ui/login" and "Max-Age=0" in out.headers["set-cookie"]
    domain.execute("UPDATE api_keys SET revoked_at = app_now() WHERE id = :id", id=client.key.split("_")[1])
    ended = visitor.get("/")
    assert ended.status_code == 303 and "Max-Age=0" in ended.headers["set-cookie"]
    forged = Visitor(visitor.http)
    forged.cookies = {"promptmill_session": client.key}
    assert forged.get("/").status_code == 303
    # Also a visitor whose cookie another site's link did not bring along: the browser keeps it.
    assert "set-cookie" not in Visitor(visitor.http).get("/").headers


def test_a_session_of_another_server_is_none_unless_they_share_a_key(
    domain: Any, database_url: str, servers: services.Servers, visitor: Visitor, client: Client
) -> None:
    with serving(database_url, servers) as other:
        moved = Visitor(other)
        moved.cookies = visitor.cookies
        assert moved.get("/").status_code == 303
    shared = {"key_file": services.KEY_FILE, "session_seconds": 60}
    with serving(database_url, servers, web=shared) as one, serving(database_url, servers, web=shared) as other:
        moved = Visitor(other)
        moved.cookies = Visitor(one, client.key).cookies
        assert moved.get("/").status_code == 200


@pytest.mark.parametrize(
    "sent_from",
    [
        {},
        {"origin": "null"},
        {"origin": "https://evil.example"},
        {"origin": "http://testserver:81"},
        {"origin": "http://testserver", "sec-fetch-site": "cross-site"},
        {"origin": "http://testserver", "sec-fetch-site": "same-site"},
        {"origin": "http://testserver", "sec-fetch-site": "none"},
    ],
)
def test_a_form_from_elsewhere_does_nothing(client: Client, visitor: Visitor, sent_from: dict[str, str]) -> None:
    batch_id = client.batch_id()
    for path in (f"/ui/batches/{batch_id}/cancel", "/ui/login", "/ui/logout", "/ui/batches", "/ui/files"):
        answer = visitor.post(path, sent_from, key=client.key)
        assert answer.status_code == 403, path
        assert "set-cookie" not in answer.headers
    assert client.call("GET", f"/v1/batches/{batch_id}").json()["status"] == "in_progress"


def test_every_answer_forbids_what_the_page_does_not_need(client: Client, visitor: Visitor) -> None:
    for path in ("/", "/ui/batches/batch_x", "/ui/login", "/ui/files/file-x/content"):
        answer = visitor.get(path)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert "style=" not in visitor.get("/").text


def test_another_projects_things_are_unknown(domain: Any, http: TestClient, client: Client) -> None:
    batch_id, file_id = client.batch_id(), client.file_id()
    stranger = Visitor(http, another(domain.engine, http, "theirs").key)
    for path in (
        f"/ui/batches/{batch_id}",
        f"/ui/batches/{batch_id}/requests/1",
        f"/ui/files/{file_id}",
        f"/ui/files/{file_id}/content",
        f"/?after={batch_id}",
        f"/ui/files?after={file_id}",
    ):
        assert stranger.get(path).status_code == 404, path
    assert stranger.post(f"/ui/batches/{batch_id}/cancel").status_code == 404
    assert stranger.post(f"/ui/batches/{batch_id}/retry", form_id="x").status_code == 404
    assert batch_id not in stranger.get("/").text
    assert file_id not in stranger.get("/ui/files").text
    assert client.call("GET", f"/v1/batches/{batch_id}").json()["status"] == "in_progress"


def test_a_key_does_here_what_it_may_do_anyway(domain: Any, http: TestClient, client: Client) -> None:
    batch_id = client.batch_id()
    key = another(domain.engine, http, "mine", scopes=[Scope.BATCHES_READ]).key
    reader = Visitor(http, key)
    page = reader.get(f"/ui/batches/{batch_id}")
    assert page.status_code == 200
    assert "/cancel" not in page.text, "no button that would be refused"
    assert reader.post(f"/ui/batches/{batch_id}/cancel").status_code == 403
    assert reader.post("/ui/batches", form_id="x", input_file_id="f", endpoint="e").status_code == 403
    assert reader.upload(numbered(1)).status_code == 403
    for path in ("/ui/files", "/ui/workers", f"/ui/batches/{batch_id}/requests/1"):
        answer = reader.get(path)
        assert answer.status_code == 403, path
        assert "Missing scopes" in answer.text


def test_calls_of_the_page_count(domain: Any, visitor: Visitor) -> None:
    domain.execute("UPDATE projects SET calls_per_minute = 1 WHERE name = 'mine'")
    assert visitor.get("/").status_code == 200
    refused = visitor.get("/")
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) > 0
    assert "Rate limit reached" in refused.text


def test_a_file_shows_everything_that_is_wrong_with_it(visitor: Visitor) -> None:
    lines = [*jsonl([request("a"), request("a")]).splitlines(), b"{", jsonl([request("b", model="")]).strip()]
    page = visitor.get(visitor.upload(b"\n".join(lines)).headers["location"]).text
    assert re.findall(r'data-label="Line" class="number">(\d+)<', page) == ["2", "3", "4"]
    assert "duplicate_custom_id" in page and "invalid_json_line" in page and "body.model" in page
    assert '/ui/batches"' not in page, "no button for a batch that would fail"


def test_a_model_that_nobody_serves_is_told_before_the_batch(visitor: Visitor) -> None:
    page = visitor.get(visitor.upload(jsonl([request("a", model="nobody")])).headers["location"]).text
    assert "model_not_found" in page
    assert "1 problem<" in page


@pytest.mark.parametrize("data", [b"", b"no json\n"])
def test_a_file_that_is_none_is_refused_with_its_reason(visitor: Visitor, data: bytes) -> None:
    answer = visitor.upload(data)
    assert answer.status_code == 400
    assert 'class="problem"' in answer.text


def test_a_batch_is_made_once_however_often_the_button_is_pressed(client: Client, visitor: Visitor) -> None:
    path = visitor.upload(numbered(3)).headers["location"]
    fields = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', visitor.get(path).text))
    first, second = (visitor.post("/ui/batches", **fields).headers["location"] for _ in range(2))
    assert first == second
    assert len(client.call("GET", "/v1/batches").json()["data"]) == 1
    assert visitor.create(path) != first, "the page read again makes another one"


def test_cancel_and_retry_do_what_the_api_does(domain: Any, client: Client, visitor: Visitor) -> None:
    place = visitor.create(visitor.upload(numbered(3)).headers["location"])
    batch_id = place.rpartition("/")[2]
    assert visitor.post(f"{place}/retry", form_id="early").status_code == 400
    assert "Cancel" in visitor.get(place).text
    assert visitor.post(f"{place}/cancel").headers["location"] == place
    assert domain.settle(batch_id) == "cancelled"
    page = visitor.get(place).text
    assert "batch_cancelled" in page and f"{place}/cancel" not in page
    again = visitor.post(f"{place}/retry", form_id="once").headers["location"]
    made = client.call("GET", f"/v1/batches/{again.rpartition('/')[2]}").json()
    assert made["metadata"] == {"retry_of": batch_id}
    assert made["request_counts"]["total"] == 3
    assert f'href="{place}"' in visitor.get(again).text


def run_some(domain: Any, batch_id: str, custom_id: str, message: str, prompt_line: int = 2) -> None:
    """Answer a row, and have another one fail."""
    (shard,) = domain.shards(batch_id)
    lease = domain.claim_soon(shard.id)
    domain.write(lease, [1])
    failed = failure(prompt_line, custom_id, status_code=400, message=message, code="too_hard")
    domain.write_outcomes(lease, [failed])


def test_a_running_batch_shows_pace_failures_and_what_there_is_to_download(
    domain: Any, client: Client, visitor: Visitor
) -> None:
    place = visitor.create(visitor.upload(numbered(5, lambda number: f"SECRET {number}")).headers["location"])
    batch_id = place.rpartition("/")[2]
    run_some(domain, batch_id, "row-1", "This is too hard.")
    page = visitor.get(place).text
    assert 'aria-valuenow="2"' in page and 'aria-valuemax="5"' in page
    assert "<polyline" in page and "Rows a second" in page
    assert re.search(r"Time left</dt><dd>\d", page)
    assert "too_hard" in page and "This is too hard." in page
    assert "SECRET" not in page, "words of a request are shown when they are asked for"
    assert "Output so far" in page and "Errors so far" in page
    output = visitor.get(f"/ui/files/file-{batch_id.removeprefix('batch_')}-output/content")
    assert output.status_code == 200 and output.headers["content-disposition"].startswith("attachment")
    assert b"row-0" in output.content
    opened = visitor.get(f"{place}/requests/2").text
    assert "SECRET 1" in opened and "This is too hard." in opened
    assert visitor.get(f"{place}/requests/99").status_code == 404
    assert visitor.get(f"{place}/requests/{2**40}").status_code == 400


def test_whatever_clients_write_is_escaped(domain: Any, client: Client, visitor: Visitor) -> None:
    data = jsonl([request("fine"), request(HOSTILE, f"{HOSTILE} prompt"), request("more")])
    place = visitor.upload(data, f"{HOSTILE}.jsonl").headers["location"]
    pages = [visitor.get(place).text, visitor.get("/ui/files").text]
    body = {"metadata": {HOSTILE: HOSTILE, "retry_of": HOSTILE}, "input_file_id": place.rpartition("/")[2]}
    batch_id = client.create(**body).json()["id"]
    run_some(domain, batch_id, HOSTILE, f"{HOSTILE} message")
    pages += [visitor.get(f"/ui/batches/{batch_id}").text, visitor.get(f"/ui/batches/{batch_id}/requests/2").text]
    bad = visitor.upload(jsonl([request("b", model=HOSTILE)]))
    pages += [visitor.get(bad.headers["location"]).text, visitor.get("/").text]
    pages += [
        visitor.get(f"/ui/batches/{HOSTILE.replace('/', '')}").text,
        visitor.get(f"/ui/login?next={HOSTILE}").text,
    ]
    failed = client.create(input_file_id=HOSTILE).json()["id"]
    pages += [visitor.get(f"/ui/batches/{failed}").text]
    for page in pages:
        assert "<script>alert" not in page
        assert "<script src" in page
    assert "&lt;script&gt;alert(1)" in pages[0]


def test_lists_have_pages(client: Client, visitor: Visitor) -> None:
    made = [client.batch_id() for _ in range(21)]
    first = visitor.get("/").text
    assert made[0] not in first and made[-1] in first
    older = re.search(r'href="(/\?after=[^"]+)"', first)
    assert older
    second = visitor.get(older[1]).text
    assert f"/ui/batches/{made[0]}" in second and f"/ui/batches/{made[1]}" not in second
    assert 'href="/"' in second
    file_page = re.search(r'href="(/ui/files\?after=[^"]+)"', visitor.get("/ui/files").text)
    assert file_page and visitor.get(file_page[1]).status_code == 200


def test_workers_are_shown_without_their_place(domain: Any, visitor: Visitor) -> None:
    page = visitor.get("/ui/workers").text
    assert "worker_1" in page and "scripted" in page and "running" in page and "s ago" in page
    (host,) = domain.execute("SELECT hostname FROM workers")[0]
    assert f">{host}<" not in page
    assert "%" not in page, "its engine does not say how full its KV cache is"
    domain.execute("""UPDATE workers SET load = '{"kv_use": 0.42}', seen_at = app_now() - interval '10 minutes'""")
    assert "42 %" in visitor.get("/ui/workers").text
    page = visitor.get("/ui/workers").text
    assert "missing" in page and "10 min ago" in page
    domain.execute("UPDATE workers SET stopped_at = app_now()")
    assert "stopped" in visitor.get("/ui/workers?fragment=true").text


def test_without_scripts_a_page_that_changes_reloads_itself(domain: Any, client: Client, visitor: Visitor) -> None:
    batch_id = client.batch_id()
    place = f"/ui/batches/{batch_id}"
    reload = '<noscript><meta http-equiv="refresh"'
    assert reload in visitor.get(place).text
    fragment = visitor.get(f"{place}?fragment=true").text
    assert "<html" not in fragment and "data-refresh" in fragment
    client.call("POST", f"/v1/batches/{batch_id}/cancel")
    domain.settle(batch_id)
    assert reload not in visitor.get(place).text
    assert "data-refresh" not in visitor.get(f"{place}?fragment=true").text


def test_the_page_is_not_part_of_the_contract_and_can_be_switched_off(
    database_url: str, servers: services.Servers, http: TestClient
) -> None:
    assert not [path for path in http.get("/openapi.json").json()["paths"] if path == "/" or path.startswith("/ui")]
    assert http.get("/healthz").json() == {"status": "ok"}
    for file in ("style.css", "page.js", "icon.svg"):
        assert http.get(f"/ui/static/{file}").status_code == 200
        assert "http" not in http.get(f"/ui/static/{file}").text.replace("http://www.w3.org/2000/svg", "")
    with serving(database_url, servers, web={"enabled": False}) as without:
        assert without.get("/").status_code == 404
        assert without.get("/ui/static/style.css").status_code == 404
