"""F113: each process has a user of its own in Postgres, which may do its work and no more."""

import contextlib
import re
import uuid
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
import services
from clients import User
from payloads import numbered
from psycopg.errors import InsufficientPrivilege
from scrapes import scrape
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError

from api.stack.program import free_port
from jobs import db
from jobs.tables import metadata

FIGURES_PORT = "PROMPTMILL_METRICS__RECONCILER_PORT"
ROLES = ("promptmill_api", "promptmill_worker", "promptmill_reconciler")


@pytest.fixture
def logins(servers: services.Servers) -> Iterator[dict[str, str]]:
    """Map each role to a user of its own, as docs/security.md makes them."""
    made = {role: f"{role}_{uuid.uuid4().hex}" for role in ROLES}
    with psycopg.connect(servers.database_url, autocommit=True) as connection:
        for role, login in made.items():
            connection.execute(f"CREATE ROLE {login} LOGIN BYPASSRLS PASSWORD '{services.PASSWORD}' IN ROLE {role}")
        yield made
        for login in made.values():
            connection.execute(f"DROP ROLE {login}")


def url(stack: services.Stack, login: str) -> str:
    parts = urlsplit(stack.database_url)
    return urlunsplit(parts._replace(netloc=f"{login}:{services.PASSWORD}@{parts.hostname}:{parts.port}"))


@pytest.fixture
def limited(stack: services.Stack, logins: dict[str, str]) -> Iterator[services.Stack]:
    """API, worker and reconciler, each as its own user. The reconciler shows figures of the queue."""
    stack.settings = {**stack.settings, FIGURES_PORT: str(free_port())}
    with contextlib.ExitStack() as end:
        # Before their users are dropped.
        end.callback(stack.stop)
        for name, role, ready in (
            ("serve", "promptmill_api", "Uvicorn running on"),
            ("reconciler", "promptmill_reconciler", "reconciler_ready"),
            ("worker", "promptmill_worker", "worker_ready"),
        ):
            stack.start(
                name,
                wait_for=ready,
                PROMPTMILL_DATABASE_URL=url(stack, logins[role]),
                PROMPTMILL_RETENTION__UPLOAD_SECONDS="1",
                PROMPTMILL_RETENTION__UNFINISHED_UPLOAD_SECONDS="1",
            )
        yield stack


def rows(stack: services.Stack, statement: str) -> list[Any]:
    with psycopg.connect(stack.database_url) as connection:
        return connection.execute(statement).fetchall()


def everything(stack: services.Stack, user: User) -> None:
    """Do what clients do, so that each process has to do what it does."""
    hook = user.sdk.webhooks.create(url="https://receiver.example.com/", name="", event_types=["batch.completed"])
    done = user.wait(user.submit(numbered(300, lambda number: "REJECT" if number == 5 else "hello")).id)
    assert done.request_counts and (done.request_counts.completed, done.request_counts.failed) == (299, 1)
    assert len(user.results(done)) == 300
    running = user.submit(numbered(300, lambda _: "SLEEP 300"))
    user.wait_for(running.id, lambda batch: batch.status == "in_progress")
    user.sdk.batches.cancel(running.id)
    assert user.wait(running.id).status == "cancelled"
    upload = user.sdk.uploads.create(filename="a", purpose="batch", bytes=10, mime_type="application/jsonl")
    user.sdk.uploads.parts.create(upload.id, data=b"0123456789")
    user.sdk.uploads.cancel(upload.id)
    # Broken off: what came is removed.
    with pytest.raises(Exception, match="empty"):
        user.sdk.files.create(file=("a.jsonl", b"\n\n"), purpose="batch")
    assert done.output_file_id
    for file_id in (done.input_file_id, done.output_file_id):
        user.sdk.files.delete(file_id)
    services.wait_until(lambda: rows(stack, "SELECT FROM webhook_deliveries WHERE attempts > 0"), "it is tried")
    user.sdk.webhooks.rotate_secret(hook.id)
    user.sdk.webhooks.delete(hook.id)
    services.wait_until(lambda: len(rows(stack, "SELECT FROM files WHERE swept_at IS NOT NULL")) >= 3, "it is swept")


def test_f113_each_process_works_with_a_user_of_its_own(limited: services.Stack) -> None:
    user = User(limited)
    everything(limited, user)
    user.sdk.close()
    assert scrape(int(limited.settings[FIGURES_PORT])).value("promptmill_database_up") == 1
    for process in limited.processes:
        log = process.log.read_text()
        for bad in ("permission", "InsufficientPrivilege", "unexpected_error", "step_failed", "_failed"):
            assert bad not in log, re.findall(f".*{bad}.*", log)[:3]


FORBIDDEN = {
    "promptmill_worker": (
        "SELECT FROM api_keys",
        "SELECT secret FROM webhook_endpoints",
        "SELECT FROM audit_log",
        "INSERT INTO api_keys (id) VALUES ('x')",
        "UPDATE projects SET max_files = NULL",
        "DELETE FROM results",
        "UPDATE results SET content = 'x'",
        "DELETE FROM batches",
        "UPDATE lines SET content = 'x'",
        "CREATE TABLE mine ()",
    ),
    "promptmill_reconciler": (
        "SELECT FROM api_keys",
        "SELECT FROM audit_log",
        "INSERT INTO lines (file_id) VALUES ('x')",
    ),
    "promptmill_api": (
        "INSERT INTO api_keys (id) VALUES ('x')",
        "UPDATE api_keys SET revoked_at = NULL",
        "UPDATE projects SET max_files = NULL",
        "SELECT FROM audit_log",
        "SELECT FROM results",
        "SELECT FROM webhook_endpoints",
        "DELETE FROM batches",
    ),
}


@pytest.mark.parametrize("role", ROLES)
def test_f113_a_process_may_do_no_more_than_its_work(stack: services.Stack, logins: dict[str, str], role: str) -> None:
    with psycopg.connect(url(stack, logins[role]), autocommit=True) as connection:
        for statement in FORBIDDEN[role]:
            with pytest.raises(InsufficientPrivilege):
                connection.execute(statement)


def test_f113_a_worker_sees_a_callers_images_only_in_the_callers_name(
    stack: services.Stack, logins: dict[str, str]
) -> None:
    engine = db.make_engine(url(stack, logins["promptmill_worker"]), connections=1)
    with db.transaction(engine, "proj_x") as connection:
        assert connection.execute(text("SELECT count(*) FROM uploads")).scalar_one() == 0
    with pytest.raises(ProgrammingError, match="permission denied"), db.transaction(engine) as connection:
        connection.execute(text("SELECT FROM uploads"))
    engine.dispose()


def test_f113_every_table_is_for_some_process_or_the_owners_alone(stack: services.Stack) -> None:
    """A new table needs a GRANT in its migration, or the processes of `promptmill up` cannot use it."""
    granted = rows(
        stack, f"SELECT DISTINCT table_name FROM information_schema.column_privileges WHERE grantee IN {ROLES}"
    )
    tenants = rows(
        stack, "SELECT table_name FROM information_schema.role_table_grants WHERE grantee = 'promptmill_tenant'"
    )
    assert {row[0] for row in granted + tenants} == set(metadata.tables) - {"audit_log"}
