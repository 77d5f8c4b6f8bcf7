"""F45, F46, F47, F49: Postgres refuses: it is full, locked, read-only. 503 at once or after some tries, nothing done."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import refusals
import services
from payloads import numbered
from starlette.testclient import TestClient
from web import Client, another, error, serving

from jobs import db

COLLISIONS = {"40001": "serialization failure", "40P01": "deadlock"}
NOT_NOW = {
    "25006": "read only",
    "53100": "disk full",
    "53200": "out of memory",
    "53300": "too many connections",
    "55P03": "lock timeout",
    "57014": "statement timeout",
    "57P01": "shut down",
    "58030": "I/O error",
}
# A connection that ends before COMMIT has done nothing.
RUN_AGAIN = (*COLLISIONS, "57P01")
EVER = 1_000_000


def refused(response: Any) -> None:
    assert error(response) == (503, None, "service_unavailable")
    assert response.json()["error"]["type"] == "server_error"
    assert int(response.headers["retry-after"]) > 0


@pytest.mark.parametrize("sqlstate", COLLISIONS, ids=COLLISIONS.get)
@pytest.mark.parametrize("table", ["files", "lines", "calls", "batches", "shards"])
def test_a_transaction_that_collides_runs_again(domain: Any, client: Client, table: str, sqlstate: str) -> None:
    refusals.install(domain.engine, table, sqlstate, times=2)
    batch = client.create(input_file_id=client.file_id())
    assert batch.status_code == 200
    assert refusals.count(domain.engine) > 2, "two were refused"
    (listed,) = client.call("GET", "/v1/batches").json()["data"]
    assert listed["id"] == batch.json()["id"]


@pytest.mark.parametrize("sqlstate", [*COLLISIONS, *NOT_NOW], ids=(COLLISIONS | NOT_NOW).get)
def test_a_batch_that_cannot_be_written_is_not_there(domain: Any, client: Client, sqlstate: str) -> None:
    file_id = client.file_id()
    refusals.install(domain.engine, "shards", sqlstate, times=EVER)
    refused(client.create(input_file_id=file_id))
    assert refusals.count(domain.engine) == (3 if sqlstate in RUN_AGAIN else 1), "its tries are bounded"
    assert client.call("GET", "/v1/batches").json()["data"] == []
    assert domain.execute("SELECT FROM requests") == []
    refusals.remove(domain.engine)
    assert client.create(input_file_id=file_id).status_code == 200


@pytest.mark.parametrize("table", ["lines", "files"])
def test_a_file_that_cannot_be_written_is_not_there(domain: Any, client: Client, table: str) -> None:
    refusals.install(domain.engine, table, "53100", times=EVER)
    refused(client.upload(numbered(3)))
    assert client.call("GET", "/v1/files").json()["data"] == []
    refusals.remove(domain.engine)
    assert client.upload(numbered(3)).status_code == 200


def test_the_log_says_what_is_full(
    domain: Any, client: Client, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    file_id = client.file_id()
    refusals.install(domain.engine, "shards", "53100", times=EVER)
    refused(client.create(input_file_id=file_id))
    said = caplog.text + capsys.readouterr().out
    assert "DiskFull" in said
    assert refusals.WORDS not in said


@pytest.fixture
def narrow(domain: Any, database_url: str, servers: services.Servers) -> Iterator[TestClient]:
    """A service with two connections."""
    with serving(database_url, servers, api={"database_connections": 2}, statement_seconds=1) as http:
        yield http


def test_calls_that_find_no_connection_are_refused_soon(
    domain: Any, narrow: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(db, "WAIT_SECONDS", 0.5)
    client = another(domain.engine, narrow, "mine")
    file_id = client.file_id()
    locked, over = threading.Event(), threading.Event()
    holder = threading.Thread(target=hold, args=(domain, locked, over))
    holder.start()
    assert locked.wait(30)
    try:
        with ThreadPoolExecutor(30) as many:
            answers = list(many.map(lambda _: client.create(input_file_id=file_id), range(30)))
        for answer in answers:
            refused(answer)
        assert narrow.get("/healthz").status_code == 200
    finally:
        over.set()
        holder.join()
    assert client.call("GET", "/v1/batches").json()["data"] == []
    assert client.create(input_file_id=file_id).status_code == 200


def hold(domain: Any, locked: threading.Event, over: threading.Event) -> None:
    with db.transaction(domain.engine) as connection:
        connection.exec_driver_sql("LOCK TABLE batches")
        locked.set()
        assert over.wait(60)
