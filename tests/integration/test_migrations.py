import os
import subprocess
from itertools import pairwise, permutations
from typing import Any

import pytest
import services
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from conftest import migrate
from sqlalchemy import CheckConstraint, text
from sqlalchemy.exc import IntegrityError

from api.stack.program import promptmill
from jobs import db, tables
from jobs.states import BATCH_TRANSITIONS, SHARD_TRANSITIONS, BatchStatus, ShardState


def test_the_newest_migration_makes_the_tables_that_the_code_knows(engine: Any) -> None:
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, tables.metadata) == []


def test_checks_in_the_database_are_the_checks_in_the_code(engine: Any) -> None:
    statement = text("SELECT conname FROM pg_constraint WHERE contype = 'c' AND connamespace = 'public'::regnamespace")
    with engine.connect() as connection:
        there = set(connection.execute(statement).scalars())
    known = {
        str(check.name)
        for table in tables.metadata.tables.values()
        for check in table.constraints
        if isinstance(check, CheckConstraint)
    }
    assert there == known


def test_down_and_up_again(servers: services.Servers) -> None:
    with services.fresh_database(servers) as name:
        for revision in ("head", "base", "head"):
            migrate(servers.database(name), revision)


def test_two_at_once_do_not_collide(servers: services.Servers) -> None:
    """F53; `test_upgrades.py` has a migration that is killed."""
    with services.fresh_database(servers) as name:
        environment = {**os.environ, "PROMPTMILL_DATABASE_URL": servers.database(name)}
        processes = [subprocess.Popen(promptmill("migrate"), env=environment) for _ in range(2)]
        assert [process.wait() for process in processes] == [0, 0]


@pytest.mark.parametrize(("before", "after"), list(permutations(BatchStatus, 2)))
def test_the_trigger_allows_the_batch_transitions_of_the_code(domain: Any, before: str, after: str) -> None:
    times = {status: f"{status}_at" for status in ("completed", "failed", "expired", "cancelled")}
    domain.execute(
        "INSERT INTO batches (id, project_id, input_file_id, endpoint, completion_window, status"
        f"{', ' + times[before] if before in times else ''}) VALUES ('b', :project, 'f', 'e', '24h', :status"
        f"{', app_now()' if before in times else ''})",
        project=domain.project_id,
        status=before,
    )
    step = "UPDATE batches SET status = :after" + "".join(
        f", {column} = {'app_now()' if status == after else 'NULL'}" for status, column in times.items()
    )
    try:
        if after in BATCH_TRANSITIONS[BatchStatus(before)]:
            domain.execute(step, after=after)
        else:
            with pytest.raises(IntegrityError, match="not a legal transition"):
                domain.execute(step, after=after)
    finally:
        domain.execute("DELETE FROM batches WHERE id = 'b'")


def _shortest_path(target: ShardState) -> list[ShardState]:
    return {
        ShardState.QUEUED: [],
        ShardState.RUNNING: [ShardState.RUNNING],
        ShardState.STOPPED: [ShardState.STOPPED],
        ShardState.DONE: [ShardState.RUNNING, ShardState.DONE],
    }[target]


@pytest.mark.parametrize(("before", "after"), list(permutations(ShardState, 2)))
def test_the_trigger_allows_the_shard_transitions_of_the_code(domain: Any, before: Any, after: Any) -> None:
    batch_id = domain.new_batch(1)

    def move(state: ShardState) -> None:
        domain.execute(
            "UPDATE shards SET state = :state, completed = :done, "
            "lease_until = CASE WHEN :state = 'running' THEN app_now() END WHERE batch_id = :id",
            state=state,
            done=int(state == ShardState.DONE),
            id=batch_id,
        )

    for state in _shortest_path(before):
        move(state)
    if after in SHARD_TRANSITIONS[before]:
        move(after)
    else:
        with pytest.raises(IntegrityError, match="not a legal transition"):
            move(after)
    domain.execute("DELETE FROM shards")


def test_an_outcome_never_changes(domain: Any) -> None:
    batch_id = domain.new_batch(1)
    lease = domain.claim(domain.shards(batch_id)[0].id)
    domain.write(lease, [1])
    with pytest.raises(IntegrityError, match="never changes"):
        domain.execute("UPDATE results SET content = 'x'")
    with pytest.raises(IntegrityError, match="results_pkey"):
        domain.execute(
            "INSERT INTO results (batch_id, line_no, is_error, lease_token, content) VALUES (:id, 1, false, 1, 'x')",
            id=batch_id,
        )


def test_a_lease_token_never_falls(domain: Any) -> None:
    batch_id = domain.new_batch(1)
    domain.claim(domain.shards(batch_id)[0].id)
    with pytest.raises(IntegrityError, match="never falls"):
        domain.execute("UPDATE shards SET lease_token = 0")


def test_a_batch_cannot_read_a_file_of_another_project(domain: Any) -> None:
    file_id = domain.upload(b'{"custom_id":"a","method":"POST","url":"/v1/x","body":{"model":"m"}}\n')
    domain.execute("INSERT INTO projects (id, name) VALUES ('other', 'other')")
    with pytest.raises(IntegrityError, match="batches_read_files_of_their_project"):
        domain.execute(
            "INSERT INTO batches (id, project_id, input_file_id, source_file_id, endpoint, completion_window) "
            "VALUES ('b', 'other', :file, :file, 'e', '24h')",
            file=file_id,
        )


def test_the_clock_can_be_shifted(domain: Any) -> None:
    offsets = []
    for offset in ("0", "1 hour"):
        with db.transaction(domain.engine) as connection:
            connection.execute(text("SELECT set_config('promptmill.clock_offset', :offset, true)"), {"offset": offset})
            offsets.append(connection.execute(text("SELECT app_now()")).scalar_one())
    assert all(later.timestamp() - earlier.timestamp() >= 3600 for earlier, later in pairwise(offsets))
