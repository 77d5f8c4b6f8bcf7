"""What every fault test ends with, `invariants.check`, sees each thing that it is there to see."""

from collections.abc import Callable
from typing import Any

import invariants
import pytest
from payloads import numbered
from sqlalchemy import Engine, text

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
