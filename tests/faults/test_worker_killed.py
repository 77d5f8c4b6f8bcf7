"""F3: a worker is killed in the middle of a batch, twice. What was committed stays; the rest is run again."""

import services
from clients import User, done
from payloads import numbered
from sqlalchemy import text


def test_two_thousand_requests_survive_two_kills(checked: services.Stack) -> None:
    checked.api()
    checked.reconciler()
    user = User(checked)
    worker = checked.worker()
    batch = user.submit(numbered(2_000, lambda number: f"SLEEP 0.6 {number}"))
    for least in (300, 1_000):
        user.wait_for(batch.id, lambda batch, least=least: done(batch) >= least)  # type: ignore[misc]
        before = user.rows(f"file-{batch.id.removeprefix('batch_')}-output")
        worker.kill()
        assert done(user.batch(batch.id)) < 2_000, "it was in the middle"
        worker = checked.worker()
        after = user.rows(f"file-{batch.id.removeprefix('batch_')}-output")
        assert {row["id"] for row in before} <= {row["id"] for row in after}, "results that were seen stay as they are"
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
