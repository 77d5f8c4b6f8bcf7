"""F42, F45, F46, F48, F49, F50: Postgres kills, refuses, locks out or cannot be reached. Work goes on by itself."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import refusals
import services
from clients import User, done
from payloads import gated, numbered
from proxies import GOOD, TOXICS
from sqlalchemy import text
from wired import Wired

KILL = """
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
"""
RUNNING = "SELECT count(*) FROM shards WHERE state = 'running'"


def submit(wired: Wired, count: int, prompt: Callable[[int], str]) -> tuple[User, Any]:
    """Submit a batch, and return when it runs."""
    user = User(wired.stack)
    batch = user.submit(numbered(count, prompt))
    services.wait_until(lambda: wired.query(RUNNING) != [0], "it runs")
    return user, batch


def completes(user: User, batch: Any, count: int) -> None:
    services.wait_until(lambda: user.look(batch.id), "the API answers")
    ended = user.wait(batch.id)
    assert ended.status == "completed"
    assert set(user.results(ended)) == {f"row-{number}" for number in range(count)}


def test_every_connection_is_killed_again_and_again(wired: Wired) -> None:
    """F42."""
    user, batch = submit(wired, 1_000, lambda number: f"SLEEP 0.5 {number}")
    for _ in range(20):
        # As soon as there is one again.
        services.wait_until(lambda: wired.query(KILL) != [0], "somebody is connected")
        user.look(batch.id)
    completes(user, batch, 1_000)


@pytest.mark.parametrize("table", ["shards", "results"])
@pytest.mark.parametrize("sqlstate", ["40001", "40P01", "55P03", "57014", "53100", "25006"])
def test_transactions_of_a_worker_are_refused(wired: Wired, tmp_path: Path, sqlstate: str, table: str) -> None:
    """F45, F46: collisions, time-outs, a full disk, a server that is read-only."""
    gate = tmp_path / "gate"
    user, batch = submit(wired, 60, gated(gate))
    engine = wired.stack.engine()
    refusals.install(engine, table, sqlstate, times=5)
    gate.touch()
    try:
        services.wait_until(lambda: refusals.count(engine) > 5, "it was refused")
    finally:
        refusals.remove(engine)
        engine.dispose()
    completes(user, batch, 60)
    assert refusals.WORDS not in wired.worker.log.read_text()


def test_a_worker_is_cut_off_for_longer_than_its_lease(wired: Wired, tmp_path: Path) -> None:
    """F48: it lets go of what it holds and claims nothing; when Postgres is back, it claims again."""
    gate = tmp_path / "gate"
    user, batch = submit(wired, 600, gated(gate, 100))
    user.wait_for(batch.id, lambda batch: done(batch) > 0)
    before = wired.worker.log.read_text()
    wired.lines["worker-postgres"].poison(TOXICS["cut"])
    services.wait_until(lambda: "lost" in wired.query("SELECT end_reason FROM attempts"), "its leases end")

    def said(event: str) -> int:
        return wired.worker.log.read_text().removeprefix(before).count(f'"{event}"')

    services.wait_until(lambda: said("claims_paused"), "it pauses")
    wired.lines["worker-postgres"].poison(GOOD)
    services.wait_until(lambda: said("claims_resumed"), "it claims again")
    assert said("claims_paused") == 1, "said once, however often it looked"
    gate.touch()
    completes(user, batch, 600)


def test_heartbeats_go_on_while_the_writer_waits(wired: Wired, tmp_path: Path) -> None:
    """F49: they have a connection of their own."""
    gate = tmp_path / "gate"
    user, batch = submit(wired, 100, gated(gate))
    leases = "SELECT min(lease_until) FROM shards WHERE state = 'running'"
    (first,) = wired.query(leases)
    engine = wired.stack.engine()
    with engine.begin() as connection:
        connection.execute(text("LOCK TABLE results"))
        gate.touch()

        def moved() -> bool:
            (now,) = wired.query(leases)
            return bool(now and (now - first).total_seconds() > 3)

        services.wait_until(moved, "the leases move on")
    engine.dispose()
    completes(user, batch, 100)


def test_the_shards_are_locked_until_their_leases_have_ended(wired: Wired) -> None:
    """F50."""
    user, batch = submit(wired, 300, lambda number: f"SLEEP 1 {number}")
    engine = wired.stack.engine()
    over = text("SELECT count(*) FROM shards WHERE state = 'running' AND lease_until > app_now()")
    with engine.begin() as connection:
        connection.execute(text("LOCK TABLE shards"))
        services.wait_until(lambda: connection.execute(over).scalar_one() == 0, "the leases end")
        assert user.look(batch.id) is None, "not now"
    engine.dispose()
    completes(user, batch, 300)
