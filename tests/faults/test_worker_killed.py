"""F3, G5: a worker is killed in the middle of a batch, twice. What was committed stays; the rest is run again."""

import services
from brokers import rows
from clients import User, done
from payloads import gated, numbered

# G5, by the clock of Postgres. A machine that is busy takes its time, a sweep that does not come takes for ever.
LEASE_AND_SWEEP = sum(
    float(services.SHORT_LEASES[name])
    for name in ("PROMPTMILL_SHARDS__LEASE_SECONDS", "PROMPTMILL_RECONCILER__SWEEP_SECONDS")
)
A_FEW_SECONDS = 30
# From the last sign of life of a dead worker, which made its leases longer, until its work was free.
FREE_AFTER = """
    SELECT extract(epoch FROM max(a.ended_at - greatest(a.started_at, w.seen_at)))::float
    FROM attempts a JOIN workers w ON w.id = a.worker_id WHERE a.end_reason = 'lost'
"""
# From there, or from when its heir was ready, until the first of it was claimed. The first heir waits for the gate.
CLAIMED_AFTER = """
    SELECT extract(epoch FROM min(next.started_at) - greatest(min(a.ended_at), min(heir.started_at)))::float
    FROM attempts a JOIN attempts next ON next.shard_id = a.shard_id AND next.lease_token > a.lease_token
    JOIN workers heir ON heir.id = next.worker_id
    WHERE a.worker_id = (SELECT worker_id FROM attempts WHERE end_reason = 'lost' ORDER BY started_at DESC LIMIT 1)
      AND a.end_reason = 'lost'
"""


def holding(stack: services.Stack) -> int:
    """Return how many workers have claimed something so far, if one holds something now."""
    last = "SELECT worker_id FROM attempts ORDER BY started_at DESC LIMIT 1"
    open_one = "EXISTS (SELECT FROM attempts a WHERE a.ended_at IS NULL AND a.worker_id = last.worker_id)"
    count = f"SELECT count(DISTINCT worker_id) FROM attempts WHERE (SELECT {open_one} FROM ({last}) AS last)"
    return int(rows(stack, count)[0])


def test_two_thousand_requests_survive_two_kills(checked: services.Stack) -> None:
    checked.api()
    checked.reconciler()
    user = User(checked)
    worker = checked.worker()
    gate = checked.home / "gate"
    batch = user.submit(numbered(2_000, gated(gate, 1_000)))
    user.wait_for(batch.id, lambda batch: done(batch) >= 300)
    for workers in (1, 2):
        services.wait_until(lambda workers=workers: holding(checked) == workers, "it holds something")  # type: ignore[misc]
        before = user.rows(f"file-{batch.id.removeprefix('batch_')}-output")
        worker.kill()
        assert done(user.batch(batch.id)) < 2_000, "it was in the middle"
        worker = checked.worker()
        after = user.rows(f"file-{batch.id.removeprefix('batch_')}-output")
        assert {row["id"] for row in before} <= {row["id"] for row in after}, "results that were seen stay as they are"
    gate.touch()
    batch = user.wait(batch.id, 120)
    assert batch.status == "completed"
    assert batch.request_counts and batch.request_counts.completed == 2_000
    results = user.results(batch)
    assert set(results) == {f"row-{number}" for number in range(2_000)}
    lost = "SELECT count(DISTINCT worker_id) FROM attempts WHERE end_reason = 'lost'"
    assert rows(checked, lost) == [2], "both dead workers lost something"
    assert rows(checked, FREE_AFTER)[0] < LEASE_AND_SWEEP + A_FEW_SECONDS
    assert rows(checked, CLAIMED_AFTER)[0] < A_FEW_SECONDS
