"""What a project may have: counted from its rows, and given back when they end."""

import threading
from typing import Any

import pytest
from payloads import numbered
from sqlalchemy import text

from jobs import batches, db, files, quotas, uploads
from jobs.errors import InvalidRequest, NotFound, PayloadTooLarge, QuotaExceeded
from jobs.protocol import UploadComplete, UploadCreate
from jobs.states import BatchStatus


def limit(domain: Any, **limits: int | None) -> None:
    with db.transaction(domain.engine) as connection:
        quotas.change(connection, "p", limits)


def test_a_project_has_its_own_limits_or_the_settings(domain: Any) -> None:
    defaults = domain.settings.limits.quotas.model_copy(update={"max_files": 5, "max_bytes": 7})
    limit(domain, max_files=0)
    with db.transaction(domain.engine) as connection:
        quota = quotas.find(connection, domain.project_id, defaults)
    assert (quota.max_files, quota.max_bytes, quota.max_open_batches) == (0, 7, None)


def test_unknown_projects_and_absurd_limits_are_refused(domain: Any) -> None:
    with pytest.raises(NotFound), db.transaction(domain.engine) as connection:
        quotas.change(connection, "nope", {"max_files": 1})
    with pytest.raises(InvalidRequest) as caught:
        limit(domain, max_bytes=-1)
    assert caught.value.param == "max_bytes"


def test_open_batches_are_counted_until_they_end(domain: Any) -> None:
    limit(domain, max_open_batches=1)
    first = domain.new_batch(3)
    with pytest.raises(QuotaExceeded) as caught:
        domain.new_batch(3)
    assert (caught.value.code, caught.value.retry_after_ms) == ("batch_quota_exceeded", 10_000)
    (shard,) = domain.shards(first)
    lease = domain.claim(shard.id)
    domain.write(lease, domain.rows(lease))
    domain.settle(first)
    assert domain.batch(domain.new_batch(3)).status == BatchStatus.IN_PROGRESS


def test_files_and_their_bytes_are_counted_until_they_are_deleted(domain: Any) -> None:
    data = numbered(3)
    limit(domain, max_files=2, max_bytes=3 * len(data))
    first = domain.upload(data)
    domain.upload(data)
    with pytest.raises(QuotaExceeded) as caught:
        domain.upload(data)
    assert (caught.value.code, caught.value.retry_after_ms) == ("file_quota_exceeded", None)
    limit(domain, max_files=None, max_bytes=2 * len(data))
    with pytest.raises(QuotaExceeded) as caught:
        domain.upload(data)
    assert caught.value.code == "storage_quota_exceeded"
    with db.transaction(domain.engine) as connection:
        files.mark_deleted(connection, domain.project_id, first)
    domain.upload(data)
    rows = domain.execute("SELECT count(*) FROM files WHERE status = 'uploading'")
    assert rows[0][0] == 0, "what was refused is gone"


def test_an_upload_in_parts_is_counted_from_its_creation(domain: Any) -> None:
    limit(domain, max_bytes=1_000)
    asked = UploadCreate(filename="a", purpose="user_data", bytes=600, mime_type="a/b")

    def create() -> str:
        with db.transaction(domain.engine) as connection:
            return uploads.create(connection, domain.project_id, asked, domain.settings)

    upload_id = create()
    with pytest.raises(QuotaExceeded):
        create()
    part_id = add_part(domain, upload_id, 600)
    uploads.complete(
        domain.engine, domain.settings.limits, domain.project_id, upload_id, UploadComplete(part_ids=[part_id])
    )
    with pytest.raises(QuotaExceeded):
        create()


def add_part(domain: Any, upload_id: str, size: int) -> str:
    part = uploads.Part(domain.engine, domain.settings.limits, domain.project_id, upload_id)
    try:
        part.feed(b"x" * size)
        return part.finish(domain.call(domain.caller))
    except BaseException:
        part.discard()
        raise


def test_parts_may_be_sent_twice_but_not_without_end(domain: Any) -> None:
    asked = UploadCreate(filename="a", purpose="user_data", bytes=100, mime_type="a/b")
    with db.transaction(domain.engine) as connection:
        upload_id = uploads.create(connection, domain.project_id, asked, domain.settings)
    for _ in range(2):
        add_part(domain, upload_id, 100)
    with pytest.raises(PayloadTooLarge):
        add_part(domain, upload_id, 1)
    assert domain.execute("SELECT count(*) FROM files WHERE status = 'uploading'")[0][0] == 0


def test_requests_of_open_batches_are_counted(domain: Any) -> None:
    limit(domain, max_open_requests=30)
    domain.new_batch(20)
    with pytest.raises(QuotaExceeded) as caught:
        domain.new_batch(11)
    assert "have 20 requests and may have 30; this one has 11" in caught.value.message
    domain.new_batch(10)


def test_a_batch_refused_for_its_quota_leaves_nothing(domain: Any) -> None:
    limit(domain, max_open_batches=0)
    with pytest.raises(QuotaExceeded):
        domain.new_batch(3)
    assert domain.execute("SELECT count(*) FROM batches")[0][0] == 0


def test_a_batch_beyond_the_enqueued_tokens_fails_as_the_contract_has_it(domain: Any) -> None:
    data = numbered(10)
    limit(domain, max_enqueued_tokens=len(data) // 4)
    first = domain.create(domain.upload(data))
    failed = domain.batch(domain.create(domain.upload(data)))
    assert failed.status == BatchStatus.FAILED
    (problem,) = failed.errors.data
    assert (problem.code, problem.param, problem.line) == ("token_limit_exceeded", None, None)
    assert problem.message.startswith("Enqueued token limit reached")
    assert domain.shards(failed.id) == []
    with db.transaction(domain.engine) as connection:
        batches.cancel(connection, domain.project_id, first)
    domain.settle(first)
    third = domain.batch(domain.create(domain.upload(data)))
    assert third.status == BatchStatus.IN_PROGRESS, "what failed and what was cancelled hold no tokens"


def test_a_batch_from_an_error_file_counts_only_what_it_runs(domain: Any) -> None:
    first = domain.new_batch(10)
    (shard,) = domain.shards(first)
    lease = domain.claim(shard.id)
    domain.write(lease, domain.rows(lease)[:7])
    with db.transaction(domain.engine) as connection:
        batches.cancel(connection, domain.project_id, first)
    domain.release(lease)
    domain.settle(first)
    limit(domain, max_open_requests=3)
    error_file = domain.batch(first).error_file_id
    assert domain.batch(domain.create(error_file)).request_counts.total == 3


def test_two_batches_at_once_do_not_both_take_the_last_place(domain: Any) -> None:
    """F110."""
    limit(domain, max_open_batches=1)
    files = [domain.upload(numbered(3)) for _ in range(8)]
    outcomes: list[str] = []

    def create(file_id: str) -> None:
        try:
            domain.create(file_id)
            outcomes.append("created")
        except QuotaExceeded:
            outcomes.append("refused")

    threads = [threading.Thread(target=create, args=(file_id,)) for file_id in files]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["created"] + ["refused"] * 7


def take(domain: Any, most: int, after: str = "0") -> float | None:
    """Make a call `after` some time; return None, or how many seconds to wait."""
    try:
        with db.transaction(domain.engine) as connection:
            connection.execute(text(f"SET LOCAL promptmill.clock_offset = '{after}'"))
            quotas.take_call(connection, domain.project_id, most)
    except QuotaExceeded as error:
        return (error.retry_after_ms or 0) / 1_000
    return None


def test_calls_are_counted_and_come_back_with_time(domain: Any) -> None:
    assert [take(domain, 3) for _ in range(3)] == [None] * 3
    wait = take(domain, 3)
    assert wait is not None
    assert 15 < wait <= 20, "three a minute: the next one is due in about twenty seconds"
    assert take(domain, 3, after="20 seconds") is None
    assert [take(domain, 3, after="1 hour") is None for _ in range(4)] == [True, True, True, False]


def test_without_a_limit_nothing_is_counted(domain: Any) -> None:
    with db.transaction(domain.engine) as connection:
        quotas.take_call(connection, domain.project_id, None)
    assert domain.execute("SELECT count(*) FROM call_budgets")[0][0] == 0


def test_no_calls_at_all(domain: Any) -> None:
    assert take(domain, 0) == 60
