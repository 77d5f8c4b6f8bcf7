"""What every fault test ends with, `invariants.check`, sees each thing that it is there to see."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import invariants
import pytest
import services
from payloads import numbered
from sqlalchemy import Engine, text

from api.stack.program import Program
from jobs import db, ids, suspects

Damage = Callable[[Any, dict[str, Any]], None]

# What breaks each rule, with the database's own rules and foreign keys switched off.
BROKEN = {
    "I1": "UPDATE lines SET content = 'x' WHERE file_id = :file_id AND line_no = 1",
    "I2: the counters": "DELETE FROM results WHERE batch_id = :batch_id AND line_no = 1",
    "I2: every result": "DELETE FROM requests WHERE batch_id = :batch_id AND line_no = 1",
    "I3": "UPDATE results SET content = content || ' ' WHERE batch_id = :running_id",
    "I4, I5": "ALTER TABLE results DISABLE TRIGGER results_are_final",
    "I6: a result file": "UPDATE files SET project_id = 'other' WHERE batch_id IS NOT NULL",
    "I6: the file of an upload": "UPDATE uploads SET file_id = :file_id, status = 'completed', project_id = 'other'",
    "I7: the file's size": "UPDATE files SET bytes = bytes + 1 WHERE batch_id IS NOT NULL",
    "I7: every custom_id": "UPDATE requests SET custom_id = custom_id || 'x' WHERE batch_id = :batch_id",
    "I9: who has an open": "UPDATE shards SET state = 'queued', lease_until = NULL WHERE batch_id = :running_id",
    "I9: who has a lease": "DELETE FROM attempts WHERE ended_at IS NULL",
    "I9: a batch that has ended": "UPDATE shards SET total = 9, state = 'queued' WHERE batch_id = :batch_id",
    "I9: every line": "DELETE FROM files WHERE id = :file_id",
    "I10: each claim": "UPDATE shards SET lease_token = 7 WHERE batch_id = :batch_id",
    "I5, I10": "UPDATE results SET lease_token = 7 WHERE batch_id = :batch_id",
    "I10: what is committed": """
        WITH aboard AS (UPDATE attempts SET aboard_line = 3)
        UPDATE results SET lease_token = 0, status_code = NULL WHERE batch_id = :batch_id""",
}


@pytest.fixture
def damaged(domain: Any) -> Any:
    """A batch that has ended, one that runs, and an upload; removed before the invariants are checked again."""
    file_id = domain.upload(numbered(3))
    batch_id, running_id = domain.create(file_id), domain.create(file_id)
    for each, lines in ((batch_id, [1, 2, 3]), (running_id, [1])):
        domain.write(domain.claim(domain.shards(each)[0].id), lines)
    domain.settle(batch_id)
    domain.execute(
        "INSERT INTO uploads (id, project_id, filename, purpose, bytes, expires_at) VALUES ('u', :id, '', '', 1, now())",
        id=domain.project_id,
    )
    yield {"file_id": file_id, "batch_id": batch_id, "running_id": running_id}
    tables = "files, lines, uploads, batches, requests, results, shards, attempts"
    domain.execute(f"TRUNCATE {tables} CASCADE")
    domain.execute("ALTER TABLE results ENABLE TRIGGER results_are_final")


def test_nothing_is_wrong_before_the_damage(domain: Any, damaged: dict[str, str]) -> None:
    invariants.check(
        domain.engine, acknowledged={damaged["file_id"]: numbered(3)}, seen=invariants.snapshot(domain.engine)
    )


@pytest.mark.parametrize("rule", BROKEN)
def test_a_broken_rule_is_seen(domain: Any, damaged: dict[str, str], rule: str) -> None:
    seen = invariants.snapshot(domain.engine)
    break_it(domain.engine, BROKEN[rule], damaged)
    with pytest.raises(AssertionError, match=rule):
        invariants.check(domain.engine, seen=seen)


def break_it(engine: Engine, statement: str, values: dict[str, str]) -> None:
    used = {name: value for name, value in values.items() if f":{name}" in statement}
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        connection.execute(text(statement), used)


# How a lease ends while its worker has a row in hand.
ENDS: dict[str, Callable[[Any, Any], object]] = {
    "it is given back": lambda domain, lease: domain.release(lease),
    "another has claimed": lambda domain, lease: domain.release(lease) and domain.claim(lease.shard_id),
    "all the others are written": lambda domain, lease: domain.write(lease, [1, 2, 3]),
    "there never was one": lambda domain, _: domain.execute("DELETE FROM attempts"),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_result_that_comes_when_its_lease_has_ended_is_seen(domain: Any, end: str) -> None:
    (shard,) = domain.shards(domain.new_batch(3))
    lease = domain.claim(shard.id)
    ENDS[end](domain, lease)
    domain.execute("DELETE FROM results")
    # Nobody ran it: what is seen is that nobody counted it.
    insert(domain, lease, status_code=None)
    with pytest.raises(AssertionError, match="I2: the counters"):
        invariants.check(domain.engine)
    domain.execute("DELETE FROM results")
    insert(domain, lease, status_code=200)
    with pytest.raises(AssertionError, match="I5: no result came"):
        invariants.check(domain.engine)
    domain.execute("TRUNCATE results, shards, attempts, watch.stale_results CASCADE")


def insert(domain: Any, lease: Any, *, status_code: int | None) -> None:
    """Write an outcome as one would who does not ask for the lease."""
    domain.execute(
        "INSERT INTO results (batch_id, line_no, is_error, status_code, lease_token, content) "
        "VALUES (:batch_id, 1, false, :status_code, :token, 'x')",
        batch_id=lease.batch_id,
        token=lease.token,
        status_code=status_code,
    )


def test_a_batch_that_has_not_ended_is_seen(domain: Any, damaged: dict[str, str]) -> None:
    with pytest.raises(AssertionError, match="I8"):
        invariants.check(domain.engine, settled=True)


def test_a_line_that_was_read_and_is_not_there_is_seen(domain: Any, damaged: dict[str, str]) -> None:
    output = ids.result_file_id(damaged["batch_id"], "output")
    there = "SELECT content FROM results WHERE batch_id = :id"
    lines = {bytes(row.content) for row in domain.execute(there, id=damaged["batch_id"])}
    invariants.check(domain.engine, read={output: lines})
    with pytest.raises(AssertionError, match="I3"):
        invariants.check(domain.engine, read={output: {*lines, b"other"}})


def test_a_death_too_many_is_seen(domain: Any) -> None:
    (shard,) = domain.shards(domain.new_batch(1))
    domain.execute("UPDATE shards SET suspect_since = 0")
    lease = domain.claim(shard.id)
    with db.transaction(domain.engine) as connection:
        assert suspects.died(connection, lease.held, 1, most_deaths=2) == "queued"
    invariants.check(domain.engine, most_deaths=1)
    with pytest.raises(AssertionError, match="I10: no death"):
        invariants.check(domain.engine, most_deaths=0)


def test_what_a_dead_process_left_behind_is_seen(stack: services.Stack, tmp_path: Path) -> None:
    parent = services.Process.start(Program("parent", ["/bin/sh", "-c", "sleep 600 & echo $!"]), tmp_path / "log")
    stack.processes.append(parent)
    parent.popen.wait(60)
    left = int(parent.log.read_text())
    assert invariants.orphans(stack) == [left]
    os.kill(left, signal.SIGKILL)
    services.wait_until(lambda: not invariants.orphans(stack), "it is gone")


@pytest.mark.parametrize("data", [None, b"other"])
def test_a_file_that_was_acknowledged_is_missed(domain: Any, data: bytes | None) -> None:
    file_id = "file-gone" if data is None else domain.upload(numbered(1))
    with pytest.raises(AssertionError, match="I1"):
        invariants.check(domain.engine, acknowledged={file_id: data or b""})


def test_the_rules_of_the_database_are_missed(domain: Any) -> None:
    domain.execute("ALTER TABLE shards DISABLE TRIGGER shard_transitions_are_legal")
    with pytest.raises(AssertionError, match="I4"):
        invariants.check(domain.engine)
    domain.execute("ALTER TABLE shards ENABLE TRIGGER shard_transitions_are_legal")
