"""Whose turn it is: the order in which workers get the shards of several projects and batches."""

from collections.abc import Iterator
from itertools import cycle
from typing import Any

import pytest
from payloads import CHAT, numbered
from sqlalchemy import text

from jobs import batches, claims, db, keys
from jobs.batches import NewBatch
from jobs.claims import Claimant
from jobs.ingest import Ingest
from jobs.leases import Lease


class Tenant:
    """Another project beside the domain's own."""

    def __init__(self, domain: Any, name: str) -> None:
        self._domain = domain
        with db.transaction(domain.engine) as connection:
            self.caller = keys.authenticate(connection, keys.create(connection, project=name, name=""))

    def submit(self, count: int, priority: int = 0) -> str:
        domain = self._domain
        ingest = Ingest(domain.engine, domain.settings.limits, self.caller.project_id)
        ingest.feed(numbered(count))
        call = domain.call(self.caller)
        file_id = ingest.finish(call, filename="a.jsonl", purpose="batch", expires_after_seconds=None)
        new = NewBatch(file_id, CHAT, "24h", 86_400, priority=priority)
        with db.transaction(domain.engine) as connection:
            return batches.create(connection, self.caller.project_id, new, domain.settings)


@pytest.fixture
def huge(domain: Any) -> Tenant:
    return Tenant(domain, "huge")


@pytest.fixture
def small(domain: Any) -> Tenant:
    return Tenant(domain, "small")


def finish(domain: Any, lease: Lease) -> None:
    domain.write(lease, domain.rows(lease))


def hints_in_order(domain: Any) -> Iterator[str]:
    """Yield the shards as their hints stand in Redis: in the order of their batches."""
    rows = domain.execute("SELECT id FROM shards ORDER BY created_at, number")
    return cycle(row.id for row in rows)


def claim_all(domain: Any, slots: int) -> list[str]:
    """Run everything with a worker of `slots` slots; return the batches in the order of their claims."""
    hints, order, held = hints_in_order(domain), [], []
    while lease := domain.claim(next(hints)):
        order.append(lease.batch_id)
        held.append(lease)
        if len(held) == slots:
            finish(domain, held.pop(0))
    for lease in held:
        finish(domain, lease)
    return order


@pytest.mark.parametrize("slots", [1, 2, 4])
def test_a_small_batch_is_not_held_up_by_a_huge_one_of_another_project(
    domain: Any, huge: Tenant, small: Tenant, slots: int
) -> None:
    first, second = huge.submit(200), small.submit(10)
    order = claim_all(domain, slots)
    assert sorted(order) == sorted([first] * 20 + [second])
    assert order.index(second) <= 1, "one shard of the huge batch may come before it"


def test_projects_share_evenly_however_many_batches_they_have(domain: Any, huge: Tenant, small: Tenant) -> None:
    many = {huge.submit(100) for _ in range(4)}
    few = small.submit(100)
    order = claim_all(domain, 4)
    assert len(order) == 50
    assert order[:20].count(few) == 10, "half of the first twenty"
    assert set(order[20:]) == many


def test_the_higher_priority_goes_first_within_a_project(domain: Any, huge: Tenant) -> None:
    low, high, normal = huge.submit(20, priority=-1), huge.submit(20, priority=5), huge.submit(20)
    assert claim_all(domain, 1) == [high] * 2 + [normal] * 2 + [low] * 2


def test_no_priority_takes_the_turn_of_another_project(domain: Any, huge: Tenant, small: Tenant) -> None:
    pushing, modest = huge.submit(100, priority=100), small.submit(50)
    assert claim_all(domain, 1)[:10].count(modest) == 5
    assert pushing != modest


def test_the_hinted_shard_is_taken_when_no_other_has_a_better_claim(domain: Any, huge: Tenant) -> None:
    shards = domain.shards(huge.submit(50))
    assert [domain.claim(shards[number].id).shard_id for number in (3, 1)] == [shards[3].id, shards[1].id]
    assert domain.claim(shards[3].id).shard_id == shards[0].id, "it is taken; the oldest is next"


def test_a_lost_hint_is_made_up_for_in_the_same_order(domain: Any, huge: Tenant, small: Tenant) -> None:
    first, second = huge.submit(50), small.submit(10)
    order = []
    for _ in range(3):
        with db.transaction(domain.engine) as connection:
            lease = claims.claim_unhinted(connection, Claimant("w", ["scripted"], [CHAT], 60), hint_seconds=10)
        assert isinstance(lease, Lease)
        order.append(lease.batch_id)
    assert order in ([first, second, first], [second, first, first]), "neither had a turn before"


def test_a_claim_looks_up_few_rows_even_without_statistics(domain: Any, huge: Tenant) -> None:
    """Whatever Postgres takes the sizes for. It once joined every shard with every batch, for a minute."""
    for table in ("shards", "batches"):
        domain.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = false)")
    huge.submit(10)
    names = "input_file_id, source_file_id, endpoint, completion_window, status, expires_at"
    domain.execute("INSERT INTO projects (id, name) SELECT 'p' || n, 'p' || n FROM generate_series(1, 50) AS n")
    domain.execute(
        f"INSERT INTO batches (id, project_id, {names}) "
        "SELECT 'b' || p || '_' || n, 'p' || p, 'file-x', NULL, endpoint, completion_window, status, expires_at "
        "FROM batches, generate_series(1, 50) AS p, generate_series(1, 100) AS n"
    )
    domain.execute(
        "INSERT INTO shards (id, project_id, batch_id, number, first_line, last_line, model, total) "
        "SELECT b.id || '_' || m, b.project_id, b.id, m, 1, 1, 'scripted', 1 FROM batches b, generate_series(1, 20) AS m "
        "WHERE b.id LIKE 'b_%' AND b.input_file_id = 'file-x'"
    )
    with db.transaction(domain.engine) as connection:
        connection.execute(text("SET LOCAL statement_timeout = '5s'"))
        assert claims.claim(connection, "shard_nope", Claimant("w", ["scripted"], [CHAT], 60))
        connection.rollback()
    domain.execute("DELETE FROM shards WHERE project_id LIKE 'p%' AND total = 1")
    domain.execute("DELETE FROM batches WHERE input_file_id = 'file-x'")


def test_a_shard_whose_lease_ended_has_waited_since_then(domain: Any, huge: Tenant) -> None:
    """Nobody took it back: the claim that finds it ends the earlier attempt itself."""
    (shard,) = domain.shards(huge.submit(10))
    domain.claim(shard.id)
    domain.execute(
        "UPDATE shards SET created_at = app_now() - interval '1 hour', lease_until = app_now() - interval '5 s'"
    )
    assert 5 <= domain.claim(shard.id).waited_seconds < 60
