"""The second line between projects: with the caller's role, Postgres itself shows no row of another project."""

from typing import Any

import pytest
from payloads import numbered
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError
from starlette.testclient import TestClient
from web import Client, another

from jobs import content, db, messages
from jobs.tables import metadata

# What the caller's role may not touch at all.
CLOSED = {"api_keys", "attempts", "audit_log", "turns", "call_budgets", "breakers", "min_worker_version"}
# What is the same for everybody.
OPEN = {"workers"}


@pytest.fixture
def theirs(domain: Any, http: TestClient) -> Client:
    """A project with a row in every table, beside the domain's own."""
    return filled(domain, another(domain.engine, http, "theirs"))


def filled(domain: Any, client: Client) -> Client:
    hook = {"url": "https://example.com/hook"}
    assert client.call("POST", "/v1/webhook_endpoints", json=hook).status_code == 200
    client.create(input_file_id="file-nope")
    batch_id = client.batch_id()
    client.headers |= {"idempotency-key": "k"}
    client.upload(numbered(2))
    upload = {"filename": "a.jsonl", "purpose": "batch", "bytes": 10, "mime_type": "application/jsonl"}
    assert client.call("POST", "/v1/uploads", json=upload).status_code == 200
    (shard,) = domain.shards(batch_id)
    domain.write(domain.claim_soon(shard.id), [1, 2])
    return client


def count(domain: Any, table: str, project_id: str) -> int:
    with db.transaction(domain.engine, project_id) as connection:
        return int(connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one())


def test_every_table_is_closed_or_has_a_policy(domain: Any) -> None:
    rows = domain.execute("SELECT relname FROM pg_class WHERE relrowsecurity AND relnamespace = 'public'::regnamespace")
    assert {row.relname for row in rows} == set(metadata.tables) - CLOSED - OPEN


@pytest.mark.parametrize("table", sorted(set(metadata.tables) - CLOSED - OPEN))
def test_a_table_shows_the_callers_rows_only(domain: Any, theirs: Client, table: str) -> None:
    their_id = domain.execute("SELECT id FROM projects WHERE name = 'theirs'")[0].id
    assert count(domain, table, their_id) > 0
    assert count(domain, table, their_id) + count(domain, table, domain.project_id) == count_all(domain, table)
    assert count(domain, table, "proj_nobody") == count(domain, table, "") == 0


def count_all(domain: Any, table: str) -> int:
    return int(domain.execute(f"SELECT count(*) FROM {table}")[0][0])


@pytest.mark.parametrize("table", sorted(CLOSED))
def test_some_tables_are_closed_to_callers(domain: Any, table: str) -> None:
    with pytest.raises(ProgrammingError, match="permission denied"):
        count(domain, table, domain.project_id)


def test_a_caller_cannot_write_for_another(domain: Any, theirs: Client) -> None:
    insert = text(
        "INSERT INTO files (id, project_id, purpose, filename, status) VALUES ('f', :id, '', '', 'processed')"
    )
    their_id = domain.execute("SELECT id FROM projects WHERE name = 'theirs'")[0].id
    with (
        pytest.raises(ProgrammingError, match="row-level security"),
        db.transaction(domain.engine, domain.project_id) as connection,
    ):
        connection.execute(insert, {"id": their_id})
    with db.transaction(domain.engine, domain.project_id) as connection:
        assert connection.execute(text("UPDATE files SET deleted_at = app_now()")).rowcount == 0


def test_a_download_shows_nothing_of_another_project(domain: Any, theirs: Client) -> None:
    """Even one that is asked for by mistake: what the file's own check let through."""
    file_id = theirs.call("GET", "/v1/files").json()["data"][0]["id"]
    their_id = domain.execute("SELECT id FROM projects WHERE name = 'theirs'")[0].id
    for project_id, is_seen in ((their_id, True), (domain.project_id, False)):
        source = content.Source(file_id, project_id=project_id)
        assert bool(b"".join(content.stream(domain.engine, source))) == is_seen
        assert bool(b"".join(content.stream_range(domain.engine, source, 0, 10))) == is_seen


def test_results_of_a_message_batch_are_read_as_those_of_its_project(domain: Any, http: TestClient) -> None:
    client = another(domain.engine, http, "theirs")
    params = {"model": "scripted", "max_tokens": 9, "messages": [{"role": "user", "content": "hello"}]}
    body = {"requests": [{"custom_id": "row-0", "params": params}]}
    batch_id = client.call("POST", "/v1/messages/batches", json=body).json()["id"].replace("msgbatch_", "batch_")
    (shard,) = domain.shards(batch_id)
    domain.write(domain.claim_soon(shard.id), [1])
    assert domain.settle(batch_id)
    project_id = domain.execute("SELECT id FROM projects WHERE name = 'theirs'")[0].id
    with db.transaction(domain.engine, project_id) as connection:
        found = messages.results_of(connection, project_id, batch_id)
    assert [source.project_id for source in found.sources] == [project_id]


def test_the_role_ends_with_its_transaction(domain: Any) -> None:
    for project_id, role in ((domain.project_id, "promptmill_tenant"), (None, None)):
        with db.transaction(domain.engine, project_id) as connection:
            user = connection.execute(text("SELECT current_user")).scalar_one()
            assert (user == "promptmill_tenant") == (role is not None)


def test_every_call_goes_through_it(domain: Any, theirs: Client) -> None:
    """With policies that show nothing, a project does not even see its own."""
    file_id = theirs.call("GET", "/v1/files").json()["data"][0]["id"]
    batch_id = theirs.call("GET", "/v1/batches").json()["data"][0]["id"]
    for table in ("files", "batches"):
        domain.execute(f"ALTER POLICY only_the_callers_project ON {table} USING (false)")
    for method, path in (
        ("GET", f"/v1/files/{file_id}"),
        ("GET", f"/v1/files/{file_id}/content"),
        ("DELETE", f"/v1/files/{file_id}"),
        ("GET", f"/v1/batches/{batch_id}"),
        ("POST", f"/v1/batches/{batch_id}/cancel"),
    ):
        assert theirs.call(method, path).status_code == 404, path
    for path in ("/v1/files", "/v1/batches"):
        assert theirs.call("GET", path).json()["data"] == []
