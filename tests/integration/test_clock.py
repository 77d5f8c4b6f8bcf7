"""F97: the database's clock is the only one, and it may jump. `tests/faults/test_clocks_differ.py` has the workers' side."""

from typing import Any

import pytest

from jobs import claims, db, hints, leases
from jobs.claims import Claimant
from jobs.leases import Lease
from jobs.protocol import BATCH_ENDPOINTS
from jobs.states import BatchStatus


def renew(domain: Any, lease: Lease) -> dict[leases.Held, leases.Renewal]:
    with db.transaction(domain.engine) as connection:
        return leases.renew(connection, [lease.held], lease_seconds=60)


def recover(domain: Any) -> list[str]:
    with db.transaction(domain.engine) as connection:
        return leases.recover(connection)


def left(domain: Any) -> list[float]:
    """Return how long leases last, seconds."""
    rows = domain.execute("SELECT extract(epoch FROM lease_until - app_now())::float AS left FROM shards")
    return [row.left for row in rows]


@pytest.mark.parametrize("jump", ["1 hour", "-1 hour"])
def test_whoever_beats_keeps_a_lease_of_the_usual_length_and_its_batch_completes(domain: Any, jump: str) -> None:
    batch_id = domain.new_batch(3)
    lease = domain.claim(domain.shards(batch_id)[0].id)
    domain.write(lease, [1])
    domain.later(jump)
    assert renew(domain, lease) == {lease.held: leases.Renewal(stopping=False)}
    assert 50 < left(domain)[0] <= 60
    assert recover(domain) == []
    assert domain.write(lease, [2, 3]) == {lease.held: True}
    assert domain.settle(batch_id) == BatchStatus.COMPLETED


def test_a_lease_that_ends_by_a_jump_is_taken_over_and_its_holder_changes_nothing(domain: Any) -> None:
    batch_id = domain.new_batch(3)
    late = domain.claim(domain.shards(batch_id)[0].id)
    domain.later("1 hour")
    assert recover(domain) == [late.shard_id]
    holder = domain.claim(late.shard_id)
    assert domain.write(late, [1]) == {}
    assert renew(domain, late) == {}
    assert domain.write(holder, [1, 2, 3]) == {holder.held: True}


def test_work_of_a_worker_that_died_before_the_clock_went_back_waits_for_its_old_end(domain: Any) -> None:
    """That is the promise (docs/operations.md): later, by as much as the clock went back, and never lost."""
    lease = domain.claim(domain.shards(domain.new_batch(3))[0].id)
    domain.later("-1 hour")
    assert recover(domain) == []
    domain.later("2 minutes")
    assert recover(domain) == [lease.shard_id]


def test_a_hint_from_a_time_that_has_not_come_yet_is_sent_again_and_waited_for_by_nobody(domain: Any) -> None:
    """A shard whose hint was lost stood still until the clock had come back to the time of the hint."""
    (shard,) = domain.shards(domain.new_batch(3))
    domain.execute("UPDATE shards SET hinted_at = app_now()")
    domain.later("-1 hour")
    with db.transaction(domain.engine) as connection:
        assert hints.to_hint(connection, hint_seconds=30)["scripted"].overdue == [shard.id]
        by = Claimant("worker_1", ["scripted"], BATCH_ENDPOINTS, 60)
        lease = claims.claim_unhinted(connection, by, hint_seconds=10)
    assert isinstance(lease, Lease)
    assert lease.shard_id == shard.id


def test_a_jump_shortens_or_lengthens_a_window_by_the_database_alone(domain: Any) -> None:
    batch_id = domain.new_batch(1)
    lease = domain.claim(domain.shards(batch_id)[0].id)
    domain.later("25 hours")
    assert renew(domain, lease)[lease.held].stopping
    domain.later("-1 hour")
    assert not renew(domain, lease)[lease.held].stopping
    assert domain.settle(batch_id) is None
