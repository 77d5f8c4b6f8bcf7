"""Who did what is noted with the deed, and nobody can change it afterwards."""

import os
import subprocess
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError, NotSupportedError, ProgrammingError
from starlette.testclient import TestClient
from web import Client, another

from api.stack.program import promptmill
from jobs import db, keys, quotas


def noted(domain: Any) -> list[tuple[str, str, str]]:
    rows = domain.execute("SELECT actor, action, object_id FROM audit_log ORDER BY id")
    return [(row.actor, row.action, row.object_id) for row in rows]


@pytest.fixture
def client(domain: Any, http: TestClient) -> Client:
    return another(domain.engine, http, "p")


def key_id(client: Client) -> str:
    return client.key.split("_")[1]


def test_what_a_key_does_is_noted_with_its_id(domain: Any, client: Client) -> None:
    made = noted(domain)
    actor = f"key {key_id(client)}"
    file_id, batch_id = client.file_id(), client.batch_id()
    upload = {"filename": "a.jsonl", "purpose": "batch", "bytes": 10, "mime_type": "application/jsonl"}
    upload_id = client.call("POST", "/v1/uploads", json=upload).json()["id"]
    hook = client.call("POST", "/v1/webhook_endpoints", json={"url": "https://example.com/hook"}).json()["id"]
    for path in (f"/v1/batches/{batch_id}/cancel", f"/v1/uploads/{upload_id}/cancel"):
        assert [client.call("POST", path).status_code for _ in range(2)] == [200, 200]
    for path in ("", "/rotate_secret"):
        change = {"url": "https://example.org/hook"} if not path else {}
        assert client.call("POST", f"/v1/webhook_endpoints/{hook}{path}", json=change).status_code == 200
    for path in (f"/v1/files/{file_id}", f"/v1/webhook_endpoints/{hook}"):
        assert client.call("DELETE", path).status_code == 200
    assert noted(domain)[len(made) :] == [
        (actor, "webhook.created", hook),
        (actor, "batch.cancelled", batch_id),
        (actor, "upload.cancelled", upload_id),
        (actor, "webhook.redirected", hook),
        (actor, "webhook.rotated", hook),
        (actor, "file.deleted", file_id),
        (actor, "webhook.deleted", hook),
    ]


def test_what_an_operator_does_is_noted_with_the_user_of_postgres(domain: Any, database_url: str) -> None:
    environment = {**os.environ, "PROMPTMILL_DATABASE_URL": database_url, "COLUMNS": "200"}

    def run(*arguments: str) -> str:
        command = promptmill(*arguments)
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.strip()

    key = run("keys", "create", "--project", "new").split("_")[1]
    run("projects", "limit", "new", "--max-files", "3")
    run("keys", "revoke", key)
    (project,) = domain.execute("SELECT id FROM projects WHERE name = 'new'")
    user = f"user {domain.engine.url.username}"
    assert noted(domain)[-4:] == [
        (user, "project.created", project.id),
        (user, "key.created", key),
        (user, "project.limited", project.id),
        (user, "key.revoked", key),
    ]
    shown = [line.split("\t")[1:] for line in run("audit", "--project", "new", "--limit", "2").splitlines()[1:]]
    assert shown == [[user, "project.limited", "new", project.id], [user, "key.revoked", "new", key]]
    assert len(run("audit").splitlines()) == 1 + len(noted(domain))


def test_a_deed_that_is_rolled_back_was_none(domain: Any) -> None:
    before = noted(domain)
    with pytest.raises(ZeroDivisionError), db.transaction(domain.engine) as connection:
        keys.create(connection, project="p", name="")
        raise ZeroDivisionError
    assert noted(domain) == before


def test_setting_what_is_set_is_no_deed(domain: Any) -> None:
    with db.transaction(domain.engine) as connection:
        quotas.change(connection, "p", {"max_files": 3})
    before = noted(domain)
    with db.transaction(domain.engine) as connection:
        quotas.change(connection, "p", {"max_files": 3})
    assert noted(domain) == before


@pytest.mark.parametrize(
    "statement", ["UPDATE audit_log SET actor = 'x'", "DELETE FROM audit_log", "TRUNCATE audit_log"]
)
def test_the_log_only_grows(domain: Any, statement: str) -> None:
    with pytest.raises(IntegrityError, match="only grows"):
        domain.execute(statement)


@pytest.mark.parametrize("statement", ["SELECT FROM audit_log", "DELETE FROM audit_log", "SELECT note_deed()"])
def test_a_caller_can_neither_read_nor_write_it(domain: Any, statement: str) -> None:
    with pytest.raises((ProgrammingError, NotSupportedError)), db.transaction(domain.engine, "x") as connection:
        connection.execute(text(statement))
