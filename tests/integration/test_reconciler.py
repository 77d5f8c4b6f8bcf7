from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
import redis
import services
from pydantic import SecretStr
from sqlalchemy import text

from jobs import db, leases, suspects, webhooks
from jobs.errors import Unavailable
from jobs.leases import Lease
from jobs.protocol import WebhookEndpointCreate
from jobs.settings import Settings
from workers import reconciler_metrics
from workers.engines.base import Load
from workers.keeper import LeaseKeeper
from workers.reconciler import LOCK, Reconciler
from workers.window import ShardRun


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


def fails(error: Exception, done: list[str]) -> Callable[[str], None]:
    def work(each: str) -> None:
        done.append(each)
        raise error

    return work


def test_a_statement_that_takes_too_long_holds_up_no_other(reconciler: Reconciler) -> None:
    done: list[str] = []
    reconciler._each(["a", "b"], fails(Unavailable(), done), "failed")
    assert done == ["a", "b"]


def test_the_others_are_not_tried_while_postgres_is_away(
    reconciler: Reconciler, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = db.make_engine("postgresql://127.0.0.1:1/none", connections=1)
    monkeypatch.setattr(reconciler, "_database", away)
    done: list[str] = []
    with pytest.raises(Unavailable):
        reconciler._each(["a", "b"], fails(Unavailable(), done), "failed")
    assert done == ["a"]


def test_a_reconciler_that_is_to_stop_begins_nothing_more(domain: Any, reconciler: Reconciler) -> None:
    batch_id = domain.new_batch(1)
    finish(domain, batch_id)

    def stop_then_settle(_: str) -> None:
        reconciler._stopping.set()

    done: list[str] = []
    reconciler._each(["a"], stop_then_settle, "failed")
    reconciler._each(["b"], done.append, "failed")
    reconciler.sweep()
    assert done == []
    assert domain.batch(batch_id).status == "in_progress"


def test_a_request_that_waits_to_be_judged_is_one_lease_that_was_taken_back(
    domain: Any, reconciler: Reconciler
) -> None:
    domain.new_batch(1)
    for _ in range(2):
        lease = domain.claim("shard_unknown")
        with db.transaction(domain.engine) as connection:
            leases.mark(connection, {lease.held: 1})
            assert suspects.died(connection, lease.held, 1, most_deaths=2) == "queued"
    assert domain.claim("shard_unknown")
    before = taken_back()
    for state in ("running", "done"):
        domain.execute("UPDATE shards SET lease_until = app_now() - interval '1 s'")
        reconciler.sweep()
        assert domain.execute("SELECT state FROM shards") == [(state,)]
    assert taken_back() - before == 1


def taken_back() -> float:
    return float(reconciler_metrics.RECOVERED.labels("aboard")._value.get())


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


class Keeping:
    """A window of one shard, and its engine, as a keeper sees them."""

    def __init__(self, *held: Lease) -> None:
        self._runs = [ShardRun(lease, deque(), lease_deadline=0, start_deadline=0) for lease in held]

    def runs(self) -> list[ShardRun]:
        return self._runs

    def healthy(self) -> bool:
        return True

    def load(self) -> Load:
        return Load(running=0)


def keeper(domain: Any, window: Any) -> LeaseKeeper:
    settings = Settings().shards.model_copy(update={"heartbeat_seconds": 0.05})
    return LeaseKeeper(domain.engine, window, window, worker_id="w", settings=settings, on_stall=lambda: None)


def test_heartbeats_survive_whatever_a_beat_raises(domain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that is no lost connection once ended the thread, and with it every lease of the worker."""
    beats = []

    def renew(*_: Any, **__: Any) -> dict[str, Any]:
        beats.append(1)
        if len(beats) == 1:
            raise RuntimeError
        return {}

    monkeypatch.setattr("jobs.leases.renew", renew)
    monkeypatch.setattr("workers.keeper.RETRY_SECONDS", 0.05)
    beating = keeper(domain, Keeping())
    beating.start()
    services.wait_until(lambda: len(beats) > 2, "it goes on beating", 10)
    beating.close()


def test_leases_are_renewed_though_the_load_cannot_be_noted(domain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    domain.new_batch(1)
    lease = domain.claim("shard_unknown")
    domain.execute("UPDATE shards SET lease_until = app_now() + interval '1 s'")

    def note_seen(*_: Any) -> None:
        raise RuntimeError

    monkeypatch.setattr("jobs.fleet.note_seen", note_seen)
    window = Keeping(lease)
    assert keeper(domain, window)._beat()
    assert domain.execute("SELECT lease_until > app_now() + interval '30 s' AS kept FROM shards") == [(True,)]
    assert window.runs()[0].lease_deadline > 0
