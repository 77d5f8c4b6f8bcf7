"""F6, F8, F9: a worker that sleeps past its lease, and one that is asked to go."""

import signal

import services
from clients import User, done
from payloads import gated, numbered
from sqlalchemy import text


def reasons(stack: services.Stack) -> set[str | None]:
    engine = stack.engine()
    with engine.connect() as connection:
        found = set(connection.execute(text("SELECT end_reason FROM attempts")).scalars())
    engine.dispose()
    return found


def test_a_worker_that_wakes_after_its_lease_changes_nothing(checked: services.Stack) -> None:
    checked.api()
    checked.reconciler()
    user = User(checked)
    sleeper = checked.worker()
    gate = checked.home / "gate"
    batch = user.submit(numbered(400, gated(gate)))
    services.wait_until(lambda: reasons(checked), "it runs")
    sleeper.signal(signal.SIGSTOP)
    checked.worker()
    services.wait_until(lambda: "lost" in reasons(checked), "the lease ends")
    gate.touch()
    sleeper.signal(signal.SIGCONT)
    batch = user.wait(batch.id)
    assert batch.status == "completed"
    assert set(user.results(batch)) == {f"row-{number}" for number in range(400)}
    assert sleeper.stop() == 0, sleeper.tail()


def test_a_drained_worker_gives_back_what_it_has_not_started(checked: services.Stack) -> None:
    checked.api()
    checked.reconciler()
    user = User(checked)
    first = checked.worker(**services.LONG_LEASES, PROMPTMILL_WORKER__DRAIN_SECONDS="1")
    gate = checked.home / "gate"
    batch = user.submit(numbered(2_000, gated(gate, 500)))
    user.wait_for(batch.id, lambda batch: done(batch) > 0)
    assert first.stop() == 0, first.tail()
    assert reasons(checked) <= {"done", "released"}, "nothing was lost"
    assert 0 < done(user.batch(batch.id)) < 2_000
    gate.touch()
    checked.worker()
    batch = user.wait(batch.id)
    assert set(user.results(batch)) == {f"row-{number}" for number in range(2_000)}
    assert reasons(checked) == {"done", "released"}


def test_rows_that_outlast_the_drain_are_released(checked: services.Stack) -> None:
    checked.api()
    user = User(checked)
    worker = checked.worker(PROMPTMILL_WORKER__DRAIN_SECONDS="1")
    batch = user.submit(numbered(10, lambda _: "SLEEP 60"))
    services.wait_until(lambda: reasons(checked), "it runs")
    assert worker.stop() == 0, worker.tail()
    assert reasons(checked) == {"released"}
    assert user.batch(batch.id).status == "in_progress"


def test_an_idle_worker_stops_at_once(checked: services.Stack) -> None:
    worker = checked.worker()
    assert worker.stop() == 0, worker.tail()
