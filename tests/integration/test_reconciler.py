from typing import Any

import pytest
import redis
import services
from pydantic import SecretStr
from sqlalchemy import text

from jobs import db, webhooks
from jobs.protocol import WebhookEndpointCreate
from jobs.settings import Settings
from workers.keeper import LeaseKeeper
from workers.reconciler import LOCK, Reconciler


@pytest.fixture
def reconciler(domain: Any, database_url: str, servers: services.Servers) -> Any:
    with redis.Redis.from_url(servers.redis_url) as broker:
        broker.flushall()
    settings = Settings(database_url=SecretStr(database_url), redis_url=SecretStr(servers.redis_url))
    made = Reconciler(settings)
    yield made
    made._database.dispose()


def finish(domain: Any, batch_id: str) -> None:
    lease = domain.claim(domain.shards(batch_id)[0].id)
    domain.write(lease, domain.rows(lease))


def test_one_sweep_ends_what_is_over(domain: Any, reconciler: Reconciler) -> None:
    done, running = domain.new_batch(3), domain.new_batch(3)
    finish(domain, done)
    lease = domain.claim(domain.shards(running)[0].id)
    domain.execute("UPDATE shards SET lease_until = app_now() - interval '1s' WHERE id = :id", id=lease.shard_id)
    assert reconciler.sweep()
    assert domain.batch(done).status == "completed"
    (shard,) = domain.shards(running)
    assert (shard.state, shard.hinted_at is not None) == ("queued", True)


def test_one_reconciler_works_at_a_time(domain: Any, reconciler: Reconciler) -> None:
    with db.transaction(domain.engine) as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK})
        assert not reconciler.sweep()
    assert reconciler.sweep()


def test_a_batch_that_cannot_be_ended_holds_up_no_other(
    domain: Any, reconciler: Reconciler, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck, done = domain.new_batch(1), domain.new_batch(1)
    for batch_id in (stuck, done):
        finish(domain, batch_id)
    settle_one = reconciler._settle_one

    def settle(batch_id: str) -> None:
        if batch_id == stuck:
            raise RuntimeError
        settle_one(batch_id)

    monkeypatch.setattr(reconciler, "_settle_one", settle)
    reconciler.sweep()
    assert (domain.batch(stuck).status, domain.batch(done).status) == ("in_progress", "completed")


def test_a_sweep_forgets_old_messages_to_webhooks(domain: Any, reconciler: Reconciler) -> None:
    with db.transaction(domain.engine) as connection:
        new = WebhookEndpointCreate(url="https://receiver.example.com")
        webhooks.create(connection, domain.project_id, new, Settings().webhooks)
    for _ in range(2):
        domain.create("file-unknown")
    domain.execute(
        "UPDATE webhook_deliveries SET created_at = app_now() - interval '31 days' "
        "WHERE id = (SELECT min(id) FROM webhook_deliveries)"
    )
    reconciler.sweep()
    assert domain.execute("SELECT count(*) FROM webhook_deliveries") == [(1,)]


def test_heartbeats_survive_whatever_a_beat_raises(domain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that is no lost connection once ended the thread, and with it every lease of the worker."""

    class Nothing:
        def runs(self) -> tuple[()]:
            return ()

        def healthy(self) -> bool:
            return True

    beats = []

    def renew(*_: Any, **__: Any) -> dict[str, Any]:
        beats.append(1)
        if len(beats) == 1:
            raise RuntimeError
        return {}

    monkeypatch.setattr("jobs.leases.renew", renew)
    monkeypatch.setattr("workers.keeper.RETRY_SECONDS", 0.05)
    settings = Settings().shards.model_copy(update={"heartbeat_seconds": 0.05})
    nothing: Any = Nothing()
    keeper = LeaseKeeper(domain.engine, nothing, nothing, worker_id="w", settings=settings, on_stall=lambda: None)
    keeper.start()
    services.wait_until(lambda: len(beats) > 2, "it goes on beating", 10)
    keeper.close()
