"""F93, F94, F96, F102: a batch is cancelled, or its time is over, in every state and in the moment of its end."""

import asyncio
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from math import inf
from typing import Any

import pytest
import services
from payloads import CHAT, numbered

from jobs import batches, claims, db, keys, leases, lifecycle, quotas
from jobs.batches import NewBatch
from jobs.claims import Claimant
from jobs.errors import AuthenticationFailed, QuotaExceeded, StateConflict
from jobs.leases import Lease, Row
from jobs.protocol import BATCH_ENDPOINTS
from jobs.states import TERMINAL, BatchStatus
from workers.marker import Marker
from workers.window import Ending, ShardRun

RACES = 1_000


def cancel(domain: Any, batch_id: str) -> None:
    with db.transaction(domain.engine) as connection:
        batches.cancel(connection, domain.project_id, batch_id)


def insert(domain: Any, status: str) -> str:
    """Write a batch without requests, in a state that it has within a transaction only."""
    domain.execute(
        "INSERT INTO batches (id, project_id, input_file_id, endpoint, completion_window, status) "
        "VALUES ('b', :project, 'f', 'e', '24h', :status)",
        project=domain.project_id,
        status=status,
    )
    return "b"


def in_progress(domain: Any) -> str:
    return str(domain.new_batch(15))


def running(domain: Any) -> str:
    batch_id = in_progress(domain)
    lease = domain.claim(domain.shards(batch_id)[0].id)
    domain.write(lease, [1, 2])
    return batch_id


def cancelling(domain: Any) -> str:
    batch_id = running(domain)
    cancel(domain, batch_id)
    return batch_id


def cancelled(domain: Any) -> str:
    batch_id = in_progress(domain)
    cancel(domain, batch_id)
    domain.settle(batch_id)
    return batch_id


def completed(domain: Any) -> str:
    batch_id = str(domain.new_batch(1))
    domain.write(domain.claim(domain.shards(batch_id)[0].id), [1])
    domain.settle(batch_id)
    return batch_id


def expired(domain: Any) -> str:
    batch_id = in_progress(domain)
    domain.execute("UPDATE batches SET expires_at = app_now() WHERE id = :id", id=batch_id)
    domain.settle(batch_id)
    return batch_id


def failed(domain: Any) -> str:
    return str(domain.create("file-unknown"))


@pytest.mark.parametrize("state", [in_progress, running, cancelling, cancelled])
def test_a_batch_that_is_not_over_is_cancelled_once(domain: Any, state: Callable[[Any], str]) -> None:
    batch_id = state(domain)
    cancel(domain, batch_id)
    first = domain.batch(batch_id)
    cancel(domain, batch_id)
    assert domain.batch(batch_id) == first
    # The worker that has a part of it is dead: its lease ends.
    domain.execute("UPDATE shards SET lease_until = app_now() - interval '1s' WHERE state = 'running'")
    with db.transaction(domain.engine) as connection:
        leases.recover(connection)
    domain.settle(batch_id)
    batch = domain.batch(batch_id)
    assert (batch.status, batch.request_counts.failed) == ("cancelled", 15 - batch.request_counts.completed)
    cancel(domain, batch_id)
    assert domain.batch(batch_id) == batch


def test_a_batch_is_cancelled_while_its_input_is_checked(domain: Any) -> None:
    batch_id = insert(domain, "validating")
    cancel(domain, batch_id)
    assert domain.settle(batch_id) == BatchStatus.CANCELLED


@pytest.mark.parametrize("statement", ["status = 'cancelling'", "expires_at = app_now()"])
def test_no_request_of_a_batch_that_stops_is_marked(domain: Any, statement: str) -> None:
    batch_id = in_progress(domain)
    lease = domain.claim(domain.shards(batch_id)[0].id)
    with db.transaction(domain.engine) as connection:
        assert leases.mark(connection, {lease.held: 2}) == {lease.held: leases.Renewal(stopping=False)}
    domain.execute(f"UPDATE batches SET {statement}")
    with db.transaction(domain.engine) as connection:
        assert leases.mark(connection, {lease.held: 10}) == {lease.held: leases.Renewal(stopping=True)}
    assert domain.execute("SELECT aboard_line FROM attempts") == [(2,)]


class Marked:
    """What a marker needs of a window: one shard whose mark suffices."""

    def __init__(self, run: ShardRun) -> None:
        self._run = run
        self.ended: list[tuple[ShardRun, Ending]] = []

    def runs(self) -> list[ShardRun]:
        return [self._run] if self._run.rows else []

    async def unmarked(self) -> dict[ShardRun, int]:
        return {}

    def marked(self, _run: ShardRun, _line: int) -> None: ...

    def end(self, run: ShardRun, ending: Ending, *, abort: bool) -> None:
        assert abort
        run.rows.clear()
        self.ended.append((run, ending))


def test_rows_that_are_marked_already_are_held_back_within_a_second(domain: Any) -> None:
    """Their mark need not be moved: the marker asks all the same, long before the next heartbeat."""
    batch_id = in_progress(domain)
    lease = domain.claim(domain.shards(batch_id)[0].id)
    run = ShardRun(lease, deque([Row(1, "a", b"")]), lease_deadline=inf, start_deadline=inf, marked_line=10)
    loop = asyncio.new_event_loop()
    running = threading.Thread(target=loop.run_forever, daemon=True)
    running.start()
    window: Any = Marked(run)
    marker = Marker(domain.engine, loop)
    marker.feed(window)
    try:
        cancel(domain, batch_id)
        services.wait_until(lambda: bool(window.ended), "it is let go", 30)
    finally:
        marker.close()
        loop.call_soon_threadsafe(loop.stop)
        running.join()
        loop.close()
    assert window.ended == [(run, Ending.LET_GO)]


@pytest.mark.parametrize("state", [completed, expired, failed])
def test_a_batch_that_is_over_cannot_be_cancelled(domain: Any, state: Callable[[Any], str]) -> None:
    batch_id = state(domain)
    before = domain.batch(batch_id)
    with pytest.raises(StateConflict, match=f"Cannot cancel a batch with status '{before.status}'"):
        cancel(domain, batch_id)
    assert domain.batch(batch_id) == before


def test_a_batch_whose_files_are_being_published_cannot_be_cancelled(domain: Any) -> None:
    batch_id = insert(domain, "finalizing")
    with pytest.raises(StateConflict, match="finalizing"):
        cancel(domain, batch_id)


def claimed(domain: Any, count: int) -> list[Lease]:
    """Return leases on the only shards of `count` batches of one request."""
    new = NewBatch(domain.upload(numbered(1)), CHAT, "24h", 86_400)
    taken: list[Lease] = []
    with db.transaction(domain.engine) as connection:
        for _ in range(count):
            batches.create(connection, domain.project_id, new, domain.settings)
            lease = claims.claim_unhinted(
                connection, Claimant("worker_1", ["scripted"], BATCH_ENDPOINTS, 3_600), hint_seconds=1
            )
            assert isinstance(lease, Lease)
            taken.append(lease)
    return taken


def test_of_cancellation_and_completion_at_once_one_wins_a_thousand_times(domain: Any) -> None:
    taken = claimed(domain, RACES)
    begin = threading.Barrier(2, timeout=60)
    refused: set[str] = set()

    def settle(batch_id: str) -> None:
        db.retrying(domain.engine, lambda connection: lifecycle.settle(connection, batch_id, domain.settings.retention))

    def work() -> None:
        for lease in taken:
            begin.wait()
            time.sleep(random.uniform(0, 0.003))
            domain.write(lease, [1])
            settle(lease.batch_id)

    def interfere() -> None:
        for lease in taken:
            begin.wait()
            time.sleep(random.uniform(0, 0.006))
            try:
                cancel(domain, lease.batch_id)
            except StateConflict:
                refused.add(lease.batch_id)
            settle(lease.batch_id)

    threads = [threading.Thread(target=work), threading.Thread(target=interfere)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = domain.execute(
        "SELECT b.id, b.status, s.completed, s.failed FROM batches b JOIN shards s ON s.batch_id = b.id"
    )
    assert Counter(row.status for row in rows).keys() == {"completed", "cancelled"}, "each of them won at times"
    assert {row.id for row in rows if row.status == "completed"} == refused
    assert {(row.completed, row.failed) for row in rows} == {(1, 0)}, "what was answered is kept"
    published = domain.execute("SELECT count(*) FROM files WHERE batch_id IS NOT NULL AND requests = 1")
    assert published == [(RACES,)]


def end_of_window(domain: Any) -> None:
    domain.later("24 hours")


def test_a_batch_that_nobody_claimed_expires(domain: Any) -> None:
    batch_id = in_progress(domain)
    end_of_window(domain)
    assert domain.claim(domain.shards(batch_id)[0].id) is None
    assert domain.settle(batch_id) == BatchStatus.EXPIRED
    assert domain.batch(batch_id).request_counts.failed == 15


def test_a_batch_of_a_dead_worker_expires_and_what_it_answered_is_kept(domain: Any) -> None:
    batch_id = str(domain.new_batch(15))
    lease = domain.claim(domain.shards(batch_id)[0].id)
    domain.write(lease, [1, 2])
    end_of_window(domain)
    assert domain.settle(batch_id) is None, "its lease has not been taken back"
    with db.transaction(domain.engine) as connection:
        assert leases.recover(connection) == [lease.shard_id]
    assert domain.settle(batch_id) == BatchStatus.EXPIRED
    assert domain.write(lease, [3]) == {}
    counts = domain.batch(batch_id).request_counts
    assert (counts.completed, counts.failed) == (2, 13)


def test_a_batch_whose_last_outcome_came_in_time_is_completed(domain: Any) -> None:
    batch_id = str(domain.new_batch(1))
    domain.write(domain.claim(domain.shards(batch_id)[0].id), [1])
    end_of_window(domain)
    assert domain.settle(batch_id) == BatchStatus.COMPLETED


def test_a_batch_that_was_cancelled_in_time_is_cancelled(domain: Any) -> None:
    batch_id = cancelling(domain)
    (lease_shard, _) = domain.shards(batch_id)
    end_of_window(domain)
    with db.transaction(domain.engine) as connection:
        assert leases.recover(connection) == [lease_shard.id]
    assert domain.settle(batch_id) == BatchStatus.CANCELLED


def test_a_lease_says_how_long_its_batch_may_start_requests(domain: Any) -> None:
    batch_id = str(domain.new_batch(1))
    domain.later("23 hours")
    lease = domain.claim(domain.shards(batch_id)[0].id)
    assert 0 < lease.seconds_left <= 3_600
    assert domain.batch(batch_id).status not in TERMINAL


def test_a_smaller_quota_and_a_revoked_key_stop_no_batch_that_runs(domain: Any) -> None:
    """What was accepted is finished (docs/tenancy.md)."""
    batch_id = str(domain.new_batch(1))
    with db.transaction(domain.engine) as connection:
        quotas.change(connection, "p", {"max_open_batches": 0, "max_files": 0, "max_enqueued_tokens": 0})
        key = keys.create(connection, project="p", name="")
        keys.revoke(connection, keys.authenticate(connection, key).key_id)
    with pytest.raises(QuotaExceeded):
        domain.create(domain.batch(batch_id).input_file_id)
    with pytest.raises(AuthenticationFailed), db.transaction(domain.engine) as connection:
        keys.authenticate(connection, key)
    domain.write(domain.claim(domain.shards(batch_id)[0].id), [1])
    assert domain.settle(batch_id) == BatchStatus.COMPLETED
