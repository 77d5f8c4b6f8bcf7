"""F3: a worker is killed in the middle of a batch, twice. What was committed stays; the rest is run again."""

import services
from clients import User, done
from payloads import gated, numbered
from sqlalchemy import text


def holding(stack: services.Stack) -> int:
    """Return how many workers have claimed something so far, if one holds something now."""
    engine = stack.engine()
    with engine.connect() as connection:
        open_one = "EXISTS (SELECT FROM attempts a WHERE a.ended_at IS NULL AND a.worker_id = last.worker_id)"
        last = "SELECT worker_id FROM attempts ORDER BY started_at DESC LIMIT 1"
        count = text(f"SELECT count(DISTINCT worker_id) FROM attempts WHERE (SELECT {open_one} FROM ({last}) AS last)")
        found: int = connection.execute(count).scalar_one()
    engine.dispose()
    return found


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
    engine = checked.engine()
    with engine.connect() as connection:
        lost = text("SELECT count(DISTINCT worker_id) FROM attempts WHERE end_reason = 'lost'")
        assert connection.execute(lost).scalar_one() == 2, "both dead workers lost something"
    engine.dispose()
