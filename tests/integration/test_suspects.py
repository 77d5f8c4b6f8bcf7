"""Who is suspected when an engine dies, and who is not."""

from collections.abc import Callable
from typing import Any

import pytest
from payloads import CHAT, jsonl, parse, request

from jobs import claims, content, db, leases, suspects
from jobs.claims import BeAlone, Claimant
from jobs.leases import Lease

GRACE_SECONDS = 60


def mark(domain: Any, lease: Lease, line: int) -> set[leases.Held]:
    with db.transaction(domain.engine) as connection:
        return set(leases.mark(connection, {lease.held: line}))


def died(domain: Any, lease: Lease, started: int) -> str | None:
    with db.transaction(domain.engine) as connection:
        return suspects.died(connection, lease.held, started, most_deaths=2)


def lose(domain: Any, lease: Lease) -> str | None:
    """End a lease as the reconciler finds it after its worker was killed."""
    end(domain, lease.shard_id)
    with db.transaction(domain.engine) as connection:
        assert leases.recover(connection) == []
        assert suspects.lost(connection) == [lease.shard_id]
    return take_back(domain, lease.shard_id)


def end(domain: Any, shard_id: str) -> None:
    domain.execute("UPDATE shards SET lease_until = app_now() - interval '1 s' WHERE id = :id", id=shard_id)


def take_back(domain: Any, shard_id: str) -> str | None:
    with db.transaction(domain.engine) as connection:
        return suspects.take_back(connection, shard_id, most_deaths=2, grace_seconds=GRACE_SECONDS)


def pieces(domain: Any, batch_id: str) -> list[tuple[int, int, int, int, bool]]:
    """Return the shards of a batch: first and last line, requests, outcomes, whether it is a suspect."""
    found = [
        (
            shard.first_line,
            shard.last_line,
            shard.total,
            shard.completed + shard.failed,
            shard.suspect_since is not None,
        )
        for shard in domain.shards(batch_id)
    ]
    return sorted(found)


def claim(domain: Any) -> Lease:
    """Claim whatever is next."""
    lease: Lease | None = domain.claim("shard_unknown")
    assert lease
    return lease


def lone_suspect(domain: Any) -> tuple[str, Lease]:
    """Make a batch of one request, which was aboard when an engine died, and claim it."""
    batch_id = domain.new_batch(1)
    lease = claim(domain)
    mark(domain, lease, 1)
    assert died(domain, lease, 1) == "queued"
    return batch_id, claim(domain)


def error_of(domain: Any, batch_id: str) -> dict[str, Any]:
    (line,) = parse(b"".join(content.stream(domain.engine, content.Source("", batch_id, is_error=True))))
    return line


@pytest.fixture(params=["reported", "lost"])
def end_badly(request: pytest.FixtureRequest, domain: Any) -> Callable[[Lease, int], str | None]:
    """The engine dies with the requests up to a line aboard: its worker says so, or is gone too."""

    def reported(lease: Lease, line: int) -> str | None:
        return died(domain, lease, line)

    def lost(lease: Lease, _: int) -> str | None:
        return lose(domain, lease)

    return reported if request.param == "reported" else lost


def test_requests_aboard_become_a_suspect_and_the_others_do_not(domain: Any, end_badly: Any) -> None:
    batch_id = domain.new_batch(10)
    lease = claim(domain)
    mark(domain, lease, 6)
    domain.write(lease, [1, 3])
    assert end_badly(lease, 6) == "queued"
    assert pieces(domain, batch_id) == [(1, 6, 6, 2, True), (7, 10, 4, 0, False)]


def test_only_what_was_started_is_suspected_if_the_worker_can_say(domain: Any) -> None:
    batch_id = domain.new_batch(10)
    lease = claim(domain)
    mark(domain, lease, 8)
    died(domain, lease, 2)
    assert pieces(domain, batch_id) == [(1, 2, 2, 0, True), (3, 10, 8, 0, False)]


def test_nobody_is_suspected_where_nothing_was_aboard(domain: Any) -> None:
    batch_id = domain.new_batch(4)
    lease = claim(domain)
    mark(domain, lease, 2)
    domain.write(lease, [1, 2])
    assert lose(domain, lease) == "queued"
    assert pieces(domain, batch_id) == [(1, 4, 4, 2, False)]


def test_a_released_lease_makes_no_suspects(domain: Any) -> None:
    batch_id = domain.new_batch(4)
    lease = claim(domain)
    mark(domain, lease, 4)
    assert domain.release(lease) == "queued"
    assert pieces(domain, batch_id) == [(1, 4, 4, 0, False)]


def test_a_lost_lease_without_a_mark_makes_no_suspects(domain: Any) -> None:
    """A worker of an earlier release leaves none."""
    batch_id = domain.new_batch(4)
    lease = claim(domain)
    end(domain, lease.shard_id)
    again = domain.claim(lease.shard_id)
    assert (again.shard_id, again.token, again.is_suspect) == (lease.shard_id, 2, False)
    assert pieces(domain, batch_id) == [(1, 4, 4, 0, False)]


def test_a_lost_lease_with_a_mark_is_not_claimed_over(domain: Any) -> None:
    domain.new_batch(4)
    lease = claim(domain)
    mark(domain, lease, 4)
    end(domain, lease.shard_id)
    assert domain.claim(lease.shard_id) is None


def test_a_mark_of_a_lost_lease_is_refused(domain: Any) -> None:
    domain.new_batch(4)
    lease = claim(domain)
    assert mark(domain, lease, 2) == {lease.held}
    lose(domain, lease)
    assert mark(domain, lease, 4) == set()


def test_a_suspect_that_kills_the_engine_is_halved(domain: Any, end_badly: Any) -> None:
    batch_id = domain.new_batch(10)
    lease = claim(domain)
    mark(domain, lease, 10)
    died(domain, lease, 10)
    lease = claim(domain)
    assert lease.is_suspect
    domain.write(lease, [1, 2])
    assert end_badly(lease, 10) == "queued"
    assert pieces(domain, batch_id) == [(1, 6, 6, 2, True), (7, 10, 4, 0, True)]


def test_halves_end_with_single_requests_and_every_request_is_in_one(domain: Any) -> None:
    batch_id = domain.new_batch(7)
    lease = claim(domain)
    mark(domain, lease, 7)
    died(domain, lease, 7)
    deaths = 1
    while len(pieces(domain, batch_id)) < 7:
        lease = claim(domain)
        if lease.remaining > 1:
            died(domain, lease, lease.last_line)
            deaths += 1
        else:
            domain.release(lease)
            # It comes first again.
            domain.execute("UPDATE shards SET state = 'stopped' WHERE id = :id", id=lease.shard_id)
    assert pieces(domain, batch_id) == [(line, line, 1, 0, True) for line in range(1, 8)]
    assert deaths == 7
    assert domain.batch(batch_id).request_counts.total == 7


def test_of_a_suspect_the_one_request_that_was_started_is_parted_from_the_others(domain: Any) -> None:
    """With an engine that runs one at a time, two deaths may be of two requests: neither died alone twice."""
    batch_id = domain.new_batch(3)
    lease = claim(domain)
    mark(domain, lease, 3)
    died(domain, lease, 3)
    died(domain, claim(domain), 1)
    assert pieces(domain, batch_id) == [(1, 1, 1, 0, True), (2, 3, 2, 0, True)]
    lease = claim(domain)
    domain.write(lease, domain.rows(lease))
    lease = claim(domain)
    assert domain.rows(lease) == [2, 3]
    assert died(domain, lease, 2) == "queued"
    assert pieces(domain, batch_id) == [(1, 1, 1, 1, True), (2, 2, 1, 0, True), (3, 3, 1, 0, True)]


def test_a_suspect_that_ends_is_cleared(domain: Any) -> None:
    batch_id, lease = lone_suspect(domain)
    assert domain.write(lease, [1]) == {lease.held: True}
    assert domain.settle(batch_id) == "completed"


def test_after_two_deaths_alone_a_request_fails(domain: Any) -> None:
    batch_id, lease = lone_suspect(domain)
    assert died(domain, lease, 1) == "queued"
    assert died(domain, claim(domain), 1) == "done"
    assert domain.settle(batch_id) == "completed"
    response = error_of(domain, batch_id)["response"]
    assert response["status_code"] == 500
    assert response["body"]["error"]["code"] == "engine_crashed"
    reasons = [row.end_reason for row in domain.execute("SELECT end_reason FROM attempts ORDER BY lease_token")]
    assert reasons == ["died"] * 3


def test_a_killed_worker_gets_a_while_to_show_that_it_lives(domain: Any) -> None:
    batch_id, lease = lone_suspect(domain)
    assert lose(domain, lease) == "queued"
    lease = claim(domain)
    assert lose(domain, lease) == "running"
    assert take_back(domain, lease.shard_id) is None, "it waits"
    assert domain.claim(lease.shard_id) is None, "and nobody runs it"
    end(domain, lease.shard_id)
    assert domain.claim(lease.shard_id) is None
    assert take_back(domain, lease.shard_id) == "done"
    assert domain.settle(batch_id) == "completed"
    assert error_of(domain, batch_id)["response"]["body"]["error"]["code"] == "engine_crashed"


def test_a_worker_that_was_only_cut_off_blames_nobody(domain: Any) -> None:
    """Postgres was away longer than its lease: it is seen again, so its engine did not die."""
    batch_id, lease = lone_suspect(domain)
    died(domain, lease, 1)
    lease = claim(domain)
    assert lose(domain, lease) == "running"
    domain.execute("UPDATE workers SET seen_at = app_now() WHERE id = 'worker_1'")
    end(domain, lease.shard_id)
    assert take_back(domain, lease.shard_id) == "queued"
    lease = claim(domain)
    assert lease.is_suspect
    domain.write(lease, [1])
    assert domain.settle(batch_id) == "completed"
    assert domain.batch(batch_id).request_counts.failed == 0


def test_a_release_alone_is_no_death(domain: Any) -> None:
    _, lease = lone_suspect(domain)
    for _ in range(3):
        assert domain.release(lease) == "queued"
        lease = claim(domain)
    assert died(domain, lease, 1) == "queued", "the first"


def test_a_suspect_of_a_batch_that_stops_is_stopped(domain: Any) -> None:
    batch_id = domain.new_batch(4)
    lease = claim(domain)
    mark(domain, lease, 2)
    domain.execute("UPDATE batches SET status = 'cancelling' WHERE id = :id", id=batch_id)
    assert died(domain, lease, 2) == "stopped"
    assert pieces(domain, batch_id) == [(1, 4, 4, 0, False)]
    assert domain.settle(batch_id) == "cancelled"


def claim_busy(domain: Any, worker: str, hinted: str = "shard_unknown") -> claims.Claimed:
    """Claim for a worker that holds something already."""
    busy = Claimant(worker, ["scripted"], [CHAT], 60, alone=False)
    with db.transaction(domain.engine) as connection:
        return claims.claim(connection, hinted, busy)


def suspect(domain: Any, count: int) -> str:
    """Make a batch, and of its first ten requests a suspect; return its id. The rest is in shards behind it."""
    batch_id = domain.new_batch(count)
    lease = claim(domain)
    mark(domain, lease, lease.last_line)
    died(domain, lease, lease.last_line)
    return str(domain.shards(batch_id)[0].id)


def test_only_a_worker_that_holds_nothing_gets_a_suspect(domain: Any) -> None:
    suspect_id = suspect(domain, 10)
    busy = Claimant("worker_2", ["scripted"], [CHAT], 60, alone=False)
    assert claim_busy(domain, "worker_2") == BeAlone(suspect_id)
    with db.transaction(domain.engine) as connection:
        assert claims.claim_unhinted(connection, busy, hint_seconds=10) == BeAlone(suspect_id)
    assert domain.execute("SELECT state FROM shards") == [("queued",)]
    assert claim(domain).is_suspect


def test_one_busy_worker_waits_for_a_suspect_and_the_others_go_on(domain: Any) -> None:
    suspect_id = suspect(domain, 50)
    assert claim_busy(domain, "worker_1") == BeAlone(suspect_id)
    for worker in ("worker_2", "worker_3", "worker_2"):
        taken = claim_busy(domain, worker, hinted=suspect_id)
        assert isinstance(taken, Lease)
        assert not taken.is_suspect
        assert claim_busy(domain, "worker_1", hinted=suspect_id) == BeAlone(suspect_id), "it waits for this one only"
    assert domain.claim(suspect_id).shard_id == suspect_id


def test_a_suspect_is_not_kept_for_a_worker_that_asks_no_more(domain: Any) -> None:
    suspect_id = suspect(domain, 10)
    assert claim_busy(domain, "worker_1") == BeAlone(suspect_id)
    assert claim_busy(domain, "worker_2") is None
    domain.later("11 seconds")
    assert claim_busy(domain, "worker_2") == BeAlone(suspect_id)
    assert claim_busy(domain, "worker_1") is None


def test_each_suspect_has_a_worker_that_waits_for_it(domain: Any) -> None:
    domain.new_batch(20)
    held = [claim(domain), claim(domain)]
    for lease in held:
        mark(domain, lease, lease.last_line)
        died(domain, lease, lease.last_line)
    waiting = [claim_busy(domain, worker) for worker in ("worker_1", "worker_2", "worker_3")]
    assert waiting == [BeAlone(held[0].shard_id), BeAlone(held[1].shard_id), None]


def test_the_requests_of_other_models_in_between_are_not_aboard(domain: Any) -> None:
    models = ["scripted", "other"]
    file_id = domain.upload(jsonl(request(f"row-{number}", model=models[number % 2]) for number in range(8)))
    domain.execute("UPDATE workers SET models = '{scripted,other}'")
    batch_id = domain.create(file_id)
    lease = claim(domain)
    mark(domain, lease, 3)
    died(domain, lease, 3)
    shards = [(shard.model, shard.first_line, shard.last_line, shard.total) for shard in domain.shards(batch_id)]
    assert shards == [("scripted", 1, 3, 2), ("other", 2, 8, 4), ("scripted", 5, 7, 2)]


def test_the_shards_of_two_deaths_are_numbered_one_after_the_other(domain: Any) -> None:
    batch_id = domain.new_batch(20)
    held = [claim(domain), claim(domain)]
    for lease in held:
        mark(domain, lease, lease.first_line)
    for lease in held:
        died(domain, lease, lease.first_line)
    assert [shard.number for shard in domain.shards(batch_id)] == [0, 1, 2, 3]
