import threading
from typing import Any

import pytest
from payloads import CHAT, parse

from jobs import batches, claims, content, db, ids, leases, lifecycle, retention
from jobs.claims import Claimant
from jobs.errors import StateConflict
from jobs.outcomes import success
from jobs.states import BatchStatus


def cancel(domain: Any, batch_id: str) -> None:
    with db.transaction(domain.engine) as connection:
        batches.cancel(connection, domain.project_id, batch_id)


def renew(domain: Any, *held: leases.Lease) -> dict[leases.Held, leases.Renewal]:
    with db.transaction(domain.engine) as connection:
        return leases.renew(connection, [lease.held for lease in held], lease_seconds=60)


def end_lease(domain: Any, lease: leases.Lease) -> None:
    domain.execute("UPDATE shards SET lease_until = app_now() - interval '1 second' WHERE id = :id", id=lease.shard_id)


def lines(domain: Any, batch_id: str, kind: ids.ResultKind) -> list[dict[str, Any]]:
    source = content.Source("", batch_id, is_error=kind == "error")
    return parse(b"".join(content.stream(domain.engine, source)))


def reasons(domain: Any) -> list[str | None]:
    return [row.end_reason for row in domain.execute("SELECT end_reason FROM attempts ORDER BY lease_token")]


def test_a_batch_is_cut_into_shards(domain: Any) -> None:
    shards = domain.shards(domain.new_batch(25))
    assert [(shard.first_line, shard.last_line, shard.total) for shard in shards] == [
        (1, 10, 10),
        (11, 20, 10),
        (21, 25, 5),
    ]


def test_a_shard_is_claimed_once(domain: Any) -> None:
    (shard,) = domain.shards(domain.new_batch(3))
    lease = domain.claim(shard.id)
    assert (lease.token, domain.rows(lease)) == (1, [1, 2, 3])
    assert domain.claim(shard.id, worker="worker_2") is None


def test_of_twenty_claims_at_once_one_succeeds(domain: Any) -> None:
    (shard,) = domain.shards(domain.new_batch(3))
    claims: list[Any] = []
    threads = [threading.Thread(target=lambda: claims.append(domain.claim(shard.id))) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(lease is not None for lease in claims) == 1


def test_a_worker_claims_only_models_that_it_serves(domain: Any) -> None:
    (shard,) = domain.shards(domain.new_batch(1))
    with db.transaction(domain.engine) as connection:
        assert claims.claim(connection, shard.id, Claimant("w", ["other"], [CHAT], 60)) is None


def test_a_worker_claims_only_endpoints_that_it_serves(domain: Any) -> None:
    (shard,) = domain.shards(domain.new_batch(1))
    other = Claimant("w", ["scripted"], ["/v1/embeddings"], 60)
    with db.transaction(domain.engine) as connection:
        assert claims.claim(connection, shard.id, other) is None
        assert claims.claim_unhinted(connection, other, hint_seconds=10) is None
        assert claims.claim(connection, shard.id, Claimant("w", ["scripted"], ["/v1/embeddings", CHAT], 60))


def test_unknown_shards_are_nobodys(domain: Any) -> None:
    assert domain.claim("shard_nope") is None


def test_results_counters_and_the_end_of_the_shard_are_one_write(domain: Any) -> None:
    batch_id = domain.new_batch(3)
    lease = domain.claim(domain.shards(batch_id)[0].id)
    assert domain.write(lease, [1, 3]) == {lease.held: False}
    assert domain.batch(batch_id).request_counts.completed == 2
    assert domain.write(lease, [2]) == {lease.held: True}
    assert domain.shards(batch_id)[0].state == "done"
    assert domain.settle(batch_id) == BatchStatus.COMPLETED
    assert [row["custom_id"] for row in lines(domain, batch_id, "output")] == ["row-0", "row-1", "row-2"]
    assert reasons(domain) == ["done"]


def test_a_late_holder_writes_nothing(domain: Any) -> None:
    batch_id = domain.new_batch(3)
    (shard,) = domain.shards(batch_id)
    zombie = domain.claim(shard.id)
    domain.write(zombie, [1])
    end_lease(domain, zombie)
    holder = domain.claim(shard.id, worker="worker_2")
    assert (holder.token, domain.rows(holder)) == (2, [2, 3])
    assert domain.write(zombie, [2]) == {}
    assert renew(domain, zombie) == {}
    assert renew(domain, zombie, holder) == {holder.held: leases.Renewal(stopping=False)}
    assert domain.release(zombie) is None
    assert domain.batch(batch_id).request_counts.completed == 1
    assert domain.write(holder, [2, 3]) == {holder.held: True}
    assert reasons(domain) == ["lost", "done"]


def test_a_commit_without_an_answer_is_not_written_twice(domain: Any) -> None:
    batch_id = domain.new_batch(3)
    lease = domain.claim(domain.shards(batch_id)[0].id)
    domain.write(lease, [1, 2])
    assert domain.write(lease, [1, 2], uncertain=True) == {lease.held: False}
    domain.write(lease, [3])
    assert domain.write(lease, [3], uncertain=True) == {lease.held: True}
    assert domain.batch(batch_id).request_counts.completed == 3


def test_a_renewal_extends_the_lease_and_tells_of_a_cancelled_batch(domain: Any) -> None:
    batch_id = domain.new_batch(3)
    lease = domain.claim(domain.shards(batch_id)[0].id, seconds=1)
    assert renew(domain, lease) == {lease.held: leases.Renewal(stopping=False)}
    assert (domain.shards(batch_id)[0].lease_until - domain.shards(batch_id)[0].created_at).total_seconds() > 50
    cancel(domain, batch_id)
    assert renew(domain, lease) == {lease.held: leases.Renewal(stopping=True)}


def test_a_released_shard_is_queued_again_at_once(domain: Any) -> None:
    batch_id = domain.new_batch(3)
    lease = domain.claim(domain.shards(batch_id)[0].id)
    domain.write(lease, [2])
    assert domain.release(lease) == "queued"
    again = domain.claim(lease.shard_id)
    assert (again.token, domain.rows(again)) == (2, [1, 3])
    assert reasons(domain) == ["released", None]


def test_an_ended_lease_is_taken_back(domain: Any) -> None:
    batch_id = domain.new_batch(3)
    lease = domain.claim(domain.shards(batch_id)[0].id)
    with db.transaction(domain.engine) as connection:
        assert leases.recover(connection) == []
    end_lease(domain, lease)
    with db.transaction(domain.engine) as connection:
        assert leases.recover(connection) == [lease.shard_id]
    assert domain.shards(batch_id)[0].state == "queued"
    assert reasons(domain) == ["lost"]


def test_the_oldest_forgotten_shard_is_next(domain: Any) -> None:
    first, second = domain.new_batch(1), domain.new_batch(1)
    domain.execute("UPDATE shards SET hinted_at = app_now() WHERE batch_id = :id", id=first)

    def claim_next() -> Any:
        with db.transaction(domain.engine) as connection:
            return claims.claim_unhinted(connection, Claimant("w", ["scripted"], [CHAT], 60), hint_seconds=10)

    assert claim_next().batch_id == second
    assert claim_next() is None
    domain.execute("UPDATE shards SET hinted_at = app_now() - interval '11 seconds' WHERE batch_id = :id", id=first)
    assert claim_next().batch_id == first


def test_cancelling_keeps_what_is_done_and_marks_the_rest(domain: Any) -> None:
    batch_id = domain.new_batch(25)
    lease = domain.claim(domain.shards(batch_id)[1].id)
    domain.write(lease, [11, 12])
    cancel(domain, batch_id)
    assert domain.batch(batch_id).status == "cancelling"
    assert domain.settle(batch_id) is None, "a worker still has a part of it"
    domain.write(lease, [13])
    assert domain.release(lease) == "stopped"
    assert domain.settle(batch_id) == BatchStatus.CANCELLED
    batch = domain.batch(batch_id)
    assert (batch.request_counts.completed, batch.request_counts.failed) == (3, 22)
    errors = lines(domain, batch_id, "error")
    assert {row["error"]["code"] for row in errors} == {"batch_cancelled"}
    assert all(row["response"] is None for row in errors)
    assert [row["custom_id"] for row in errors] == [f"row-{n}" for n in range(25) if n not in (10, 11, 12)]


def test_a_shard_released_in_the_moment_of_the_cancellation_is_stopped(domain: Any) -> None:
    """The release saw the batch in progress, the cancellation saw the shard running; it stayed queued for a day."""
    batch_id = domain.new_batch(3)
    domain.claim(domain.shards(batch_id)[0].id)
    domain.execute("UPDATE batches SET status = 'cancelling', cancelling_at = app_now() WHERE id = :id", id=batch_id)
    domain.execute("UPDATE attempts SET ended_at = app_now(), end_reason = 'released'")
    domain.execute("UPDATE shards SET state = 'queued', lease_until = NULL WHERE batch_id = :id", id=batch_id)
    with db.transaction(domain.engine) as connection:
        assert lifecycle.to_settle(connection) == [batch_id]
    assert domain.settle(batch_id) == BatchStatus.CANCELLED


def test_a_late_holder_beside_the_holder_in_one_write(domain: Any) -> None:
    batch_id = domain.new_batch(2)
    (shard,) = domain.shards(batch_id)
    zombie = domain.claim(shard.id)
    end_lease(domain, zombie)
    holder = domain.claim(shard.id)
    groups = [
        leases.Written(lease.shard_id, lease.token, batch_id, [success(line_no, f"row-{line_no - 1}", {})])
        for lease, line_no in ((zombie, 1), (holder, 2))
    ]
    with db.transaction(domain.engine) as connection:
        assert leases.write(connection, groups, uncertain=False) == {holder.held: False}
    assert domain.rows(holder) == [1]


def test_cancelling_twice_is_one_and_ended_batches_refuse(domain: Any) -> None:
    batch_id = domain.new_batch(1)
    cancel(domain, batch_id)
    cancel(domain, batch_id)
    domain.settle(batch_id)
    cancel(domain, batch_id)
    other = domain.new_batch(1)
    domain.write(domain.claim(domain.shards(other)[0].id), [1])
    domain.settle(other)
    with pytest.raises(StateConflict, match="Cannot cancel a batch with status 'completed'"):
        cancel(domain, other)


def test_an_expired_batch_delivers_what_is_done(domain: Any) -> None:
    batch_id = domain.new_batch(15)
    first, second = domain.shards(batch_id)
    lease = domain.claim(first.id)
    domain.write(lease, [1])
    domain.execute("UPDATE batches SET expires_at = app_now() WHERE id = :id", id=batch_id)
    assert domain.claim(second.id) is None, "nothing starts after expires_at"
    assert renew(domain, lease)[lease.held].stopping
    assert domain.settle(batch_id) is None
    assert domain.release(lease) == "stopped"
    assert domain.settle(batch_id) == BatchStatus.EXPIRED
    assert {row["error"]["code"] for row in lines(domain, batch_id, "error")} == {"batch_expired"}
    assert domain.batch(batch_id).request_counts.failed == 14


def test_a_batch_that_is_done_in_time_is_completed_even_if_settled_late(domain: Any) -> None:
    batch_id = domain.new_batch(1)
    domain.write(domain.claim(domain.shards(batch_id)[0].id), [1])
    domain.execute("UPDATE batches SET expires_at = app_now() WHERE id = :id", id=batch_id)
    assert domain.settle(batch_id) == BatchStatus.COMPLETED


def test_settling_twice_changes_nothing(domain: Any) -> None:
    batch_id = domain.new_batch(1)
    domain.write(domain.claim(domain.shards(batch_id)[0].id), [1])
    assert domain.settle(batch_id) == BatchStatus.COMPLETED
    before = domain.batch(batch_id)
    assert domain.settle(batch_id) is None
    assert domain.batch(batch_id) == before


def test_deleted_files_are_swept_but_not_under_a_running_batch(domain: Any) -> None:
    batch_id = domain.new_batch(3)
    file_id = domain.batch(batch_id).input_file_id

    def sweep() -> int:
        with db.transaction(domain.engine) as connection:
            return int(retention.sweep_file(connection, unfinished_seconds=60))

    domain.execute("UPDATE files SET deleted_at = app_now() WHERE id = :id", id=file_id)
    assert sweep() == 0
    lease = domain.claim(domain.shards(batch_id)[0].id)
    domain.write(lease, domain.rows(lease))
    domain.settle(batch_id)
    assert sweep() == 1
    assert sweep() == 0
    assert domain.execute("SELECT FROM lines") == []
