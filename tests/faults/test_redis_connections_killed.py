"""F31: every connection to Redis is cut while shards run. Celery may deliver again; each shard is run once."""

import services
from brokers import NO_POLLING, rows
from clients import User
from payloads import gated, numbered


def test_cut_connections_run_nothing_twice(checked: services.Stack) -> None:
    checked.api()
    checked.reconciler()
    worker = checked.worker(**services.LONG_LEASES, **NO_POLLING)
    user = User(checked)
    gate = checked.home / "gate"
    batch = user.submit(numbered(600, gated(gate, 100)))
    attempts = "SELECT end_reason FROM attempts"
    for running in (1, 2, 3):
        services.wait_until(lambda running=running: len(rows(checked, attempts)) >= running, "shards run")  # type: ignore[misc]
        assert user.batch(batch.id).status == "in_progress"
        with checked.redis() as broker:
            assert broker.client_kill_filter(_type="normal", skipme=True) > 0
    gate.touch()
    batch = user.wait(batch.id)
    assert batch.status == "completed"
    assert set(user.results(batch)) == {f"row-{number}" for number in range(600)}
    assert rows(checked, attempts) == ["done"] * 3
    # It hears the next one.
    assert user.wait(user.submit(numbered(1)).id).status == "completed"
    assert worker.stop() == 0, worker.tail()
