"""F53, F99, F101: migrations that are killed, that come in the way of work, and that give way; models that change."""

import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import services
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from conftest import ROOT, migrate
from sqlalchemy.exc import OperationalError

from api.stack.program import promptmill
from jobs import db, fleet
from jobs.protocol import BATCH_ENDPOINTS
from jobs.states import BatchStatus

EXPAND = """
from alembic import op

revision = "9999"
down_revision = "{head}"


def upgrade():
    op.execute("ALTER TABLE shards ADD COLUMN later integer NOT NULL DEFAULT 0")
    op.execute("ALTER TABLE results ADD COLUMN later text")
"""


# What a migration has to go by, whatever its connection had before.
LIMITS = """
from alembic import op

revision = "9999"
down_revision = "{head}"


def upgrade():
    op.execute("CREATE TABLE limits AS SELECT name, setting FROM pg_settings WHERE name LIKE '%_timeout'")
"""
# Longer than a migration waits for a lock, by far, and shorter than anybody else does (`db.LOCK_SECONDS`).
STALL_SECONDS = 9


def expand(domain: Any, folder: Path, code: str = EXPAND) -> None:
    """Run a migration that adds columns to the busiest tables, as a release to come may."""
    config = Config(ROOT / "alembic.ini")
    config.set_main_option("path_separator", "newline")
    config.set_main_option("version_locations", f"{ROOT / 'migrations' / 'versions'}\n{folder}")
    head = ScriptDirectory.from_config(Config(ROOT / "alembic.ini")).get_current_head()
    (folder / "9999_later.py").write_text(code.replace("{head}", str(head)))
    url = domain.engine.url.render_as_string(hide_password=False)
    engine = db.make_engine(url, connections=1, statement_seconds=3_600)
    try:
        with engine.connect() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    finally:
        engine.dispose()


def columns(domain: Any, table: str) -> set[str]:
    statement = "SELECT column_name FROM information_schema.columns WHERE table_name = :name"
    return {row.column_name for row in domain.execute(statement, name=table)}


def waiting(connection: Any) -> bool:
    statement = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    return connection.execute(f"{statement} AND query LIKE '%ALTER TABLE%'").fetchone() is not None


@contextmanager
def reading(database_url: str, table: str) -> Iterator[Any]:
    """Hold a table open as a long report would."""
    with psycopg.connect(database_url) as connection:
        connection.execute(f"SELECT FROM {table} LIMIT 1")
        yield connection
        connection.rollback()


def test_columns_are_added_while_fifty_shards_run(domain: Any, tmp_path: Path) -> None:
    batch_id = domain.new_batch(500)
    taken = [domain.claim(shard.id) for shard in domain.shards(batch_id)]
    assert len(taken) == 50
    stop = threading.Event()
    written: list[dict[Any, bool]] = []
    seconds: list[float] = []

    def work() -> None:
        for lease in taken:
            began = time.monotonic()
            written.append(domain.write(lease, domain.rows(lease)))
            seconds.append(time.monotonic() - began)
            if len(written) == 25:
                stop.wait(30)

    worker = threading.Thread(target=work)
    worker.start()
    services.wait_until(lambda: len(written) >= 10, "it is in the middle")
    expand(domain, tmp_path)
    stop.set()
    worker.join()
    assert "later" in columns(domain, "shards") & columns(domain, "results")
    assert written == [{lease.held: True} for lease in taken]
    assert max(seconds) < STALL_SECONDS
    assert domain.settle(batch_id) == BatchStatus.COMPLETED


def test_a_migration_that_has_to_wait_gives_way_to_the_work_behind_it(
    domain: Any, database_url: str, tmp_path: Path
) -> None:
    batch_id = domain.new_batch(3)
    lease = domain.claim(domain.shards(batch_id)[0].id)
    outcome: list[BaseException] = []

    def upgrade() -> None:
        try:
            expand(domain, tmp_path)
        except OperationalError as error:
            outcome.append(error)

    with reading(database_url, "shards"), psycopg.connect(database_url, autocommit=True) as watcher:
        migration = threading.Thread(target=upgrade)
        migration.start()
        services.wait_until(lambda: waiting(watcher), "it waits for the report")
        began = time.monotonic()
        # Waits behind the migration, and not for the report, which goes on.
        assert domain.write(lease, [1, 2, 3]) == {lease.held: True}
        assert time.monotonic() - began < STALL_SECONDS
        migration.join(30)
    assert "lock timeout" in str(outcome[0])
    assert "later" not in columns(domain, "shards") | columns(domain, "results")
    expand(domain, tmp_path)
    assert "later" in columns(domain, "shards") & columns(domain, "results")


def test_a_migration_ends_by_itself_whatever_it_waits_for(domain: Any, tmp_path: Path) -> None:
    expand(domain, tmp_path, LIMITS)
    found = dict(tuple(row) for row in domain.execute("SELECT name, setting FROM limits"))
    assert (found["lock_timeout"], found["statement_timeout"]) == ("2000", "60000")


def test_a_migration_that_is_killed_halfway_leaves_nothing_and_is_run_again(servers: services.Servers) -> None:
    with services.fresh_database(servers) as name:
        url = servers.database(name)
        migrate(url)
        migrate(url, "0006")
        # 0008 adds to api_keys, projects and then batches, where it has to wait.
        with reading(url, "batches") as connection:
            migration = subprocess.Popen(promptmill("migrate"), env={**os.environ, "PROMPTMILL_DATABASE_URL": url})
            with psycopg.connect(url, autocommit=True) as watcher:
                services.wait_until(lambda: waiting(watcher) or migration.poll() is not None, "it is in the middle")
                migration.kill()
                migration.wait()
            connection.rollback()
        with psycopg.connect(url, autocommit=True) as connection:
            assert connection.execute("SELECT version_num FROM alembic_version").fetchone() == ("0006",)
            with pytest.raises(psycopg.errors.UndefinedColumn):
                connection.execute("SELECT scopes FROM api_keys")
        environment = {**os.environ, "PROMPTMILL_DATABASE_URL": url}
        assert subprocess.run(promptmill("migrate"), env=environment, check=False).returncode == 0
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("SELECT scopes FROM api_keys")


def test_results_of_a_batch_whose_model_was_replaced_lead_to_the_model_that_answered(domain: Any) -> None:
    """By the statement in docs/operations.md."""
    for worker, revision in (("worker_2", "vllm 1 gemma old"), ("worker_3", "vllm 1 gemma new")):
        with db.transaction(domain.engine) as connection:
            fleet.register(
                connection, worker, engine="vllm", models=["scripted"], endpoints=BATCH_ENDPOINTS, revision=revision
            )
    batch_id = domain.new_batch(3)
    (shard,) = domain.shards(batch_id)
    first = domain.claim(shard.id, worker="worker_2")
    domain.write(first, [2])
    domain.release(first)
    domain.write(domain.claim(shard.id, worker="worker_3"), [1, 3])
    guide = (ROOT / "docs" / "operations.md").read_text()
    (statement,) = re.findall(r"```sql\n(SELECT r\.line_no.*?);\n```", guide, re.DOTALL)
    rows = domain.execute(statement.replace("'batch_...'", ":id") + " ORDER BY r.line_no", id=batch_id)
    assert [tuple(row) for row in rows] == [(1, "vllm 1 gemma new"), (2, "vllm 1 gemma old"), (3, "vllm 1 gemma new")]
