from typing import Any

import pytest
from payloads import jsonl, numbered, parse, request

from jobs import content, db, ids, lifecycle, retention
from jobs.errors import InvalidRequest
from jobs.outcomes import failure


def end_with_failures(domain: Any, batch_id: str, failed: list[int]) -> str:
    """Run a batch, let some lines fail, and return its error file."""
    for shard in domain.shards(batch_id):
        lease = domain.claim(shard.id)
        rows = domain.rows(lease)
        good = [line for line in rows if line not in failed]
        bad = [failure(line, f"row-{line - 1}", status_code=500, message="no") for line in rows if line in failed]
        if good:
            domain.write(lease, good)
        if bad:
            domain.write_outcomes(lease, bad)
    settle(domain, batch_id)
    return ids.result_file_id(batch_id, "error")


def settle(domain: Any, batch_id: str) -> None:
    with db.transaction(domain.engine) as connection:
        lifecycle.settle(connection, batch_id, domain.settings.retention)


def output(domain: Any, batch_id: str) -> list[str]:
    rows = parse(b"".join(content.stream(domain.engine, content.Source("", batch_id))))
    return [row["custom_id"] for row in rows]


def test_an_error_file_runs_its_requests_again(domain: Any) -> None:
    first = domain.new_batch(25)
    errors = end_with_failures(domain, first, [3, 14, 15])
    second = domain.create(errors)
    batch = domain.batch(second)
    assert (batch.status, batch.input_file_id, batch.metadata) == ("in_progress", errors, {"retry_of": first})
    assert batch.request_counts.total == 3
    (shard,) = domain.shards(second)
    lease = domain.claim(shard.id)
    assert domain.rows(lease) == [3, 14, 15]
    domain.write(lease, [3, 14, 15])
    settle(domain, second)
    assert output(domain, second) == ["row-2", "row-13", "row-14"]


def test_what_failed_again_can_be_run_again(domain: Any) -> None:
    errors = end_with_failures(domain, domain.new_batch(5), [1, 2, 3])
    again = end_with_failures(domain, domain.create(errors), [2])
    third = domain.create(again)
    assert domain.rows(domain.claim(domain.shards(third)[0].id)) == [2]


def test_cancelled_requests_can_be_run_again(domain: Any) -> None:
    from jobs import batches

    first = domain.new_batch(12)
    lease = domain.claim(domain.shards(first)[0].id)
    domain.write(lease, domain.rows(lease))
    with db.transaction(domain.engine) as connection:
        batches.cancel(connection, domain.project_id, first)
    settle(domain, first)
    second = domain.create(ids.result_file_id(first, "error"))
    assert domain.batch(second).request_counts.total == 2


def test_the_parent_is_named_whatever_the_client_says(domain: Any) -> None:
    first = domain.new_batch(2)
    errors = end_with_failures(domain, first, [2])
    second = domain.create(errors, metadata={"retry_of": "other", "team": "a"})
    assert domain.batch(second).metadata == {"retry_of": first, "team": "a"}
    domain.create(errors, metadata={str(number): "" for number in range(15)})
    with pytest.raises(InvalidRequest):
        domain.create(errors, metadata={str(number): "" for number in range(16)})


def test_an_output_file_is_no_input(domain: Any) -> None:
    """F65."""
    first = domain.new_batch(2)
    end_with_failures(domain, first, [2])
    batch = domain.batch(domain.create(ids.result_file_id(first, "output")))
    assert (batch.status, batch.errors.data[0].param) == ("failed", "file_id")
    assert "'batch_output'" in batch.errors.data[0].message


def test_without_its_lines_nothing_is_run(domain: Any) -> None:
    file_id = domain.upload(jsonl([request("row-0")]) + numbered(0))
    errors = end_with_failures(domain, domain.create(file_id), [1])
    domain.execute("UPDATE files SET deleted_at = app_now() WHERE id = :id", id=file_id)
    assert domain.batch(domain.create(errors)).status == "in_progress", "deleted, but its lines are there"
    domain.execute("UPDATE shards SET state = 'stopped' WHERE state = 'queued'")
    domain.execute("UPDATE batches SET status = 'cancelling', cancelling_at = app_now() WHERE status = 'in_progress'")
    for row in domain.execute("SELECT id FROM batches WHERE status = 'cancelling'"):
        settle(domain, row.id)
    with db.transaction(domain.engine) as connection:
        assert retention.sweep_file(connection, unfinished_seconds=60)
    assert domain.batch(domain.create(errors)).status == "failed"
