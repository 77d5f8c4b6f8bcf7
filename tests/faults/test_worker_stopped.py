"""F6, F8, F9: a worker that sleeps past its lease, and one that is asked to go."""

import signal

import services
from brokers import rows
from clients import User, done
from payloads import gated, numbered


def reasons(stack: services.Stack) -> set[str | None]:
    return set(rows(stack, "SELECT end_reason FROM attempts"))


def test_a_worker_that_wakes_after_its_lease_changes_nothing(checked: services.Stack) -> None:
    """It brings half of its rows, which count for nothing, and gives up the others, which nobody has answered yet."""
    checked.api()
    checked.reconciler()
    user = User(checked)
    sleeper = checked.worker()
    early, late = checked.home / "early", checked.home / "late"
    batch = user.submit(numbered(400, lambda number: f"AWAIT {early if number % 2 else late} {number}"))
    services.wait_until(lambda: reasons(checked), "it runs")
    sleeper.signal(signal.SIGSTOP)
    checked.worker()
    services.wait_until(lambda: "lost" in reasons(checked), "the lease ends")
    early.touch()
    sleeper.signal(signal.SIGCONT)
    services.wait_until(lambda: '"ending": "lost"' in sleeper.log.read_text(), "it gives up what is not answered")
    late.touch()
    batch = user.wait(batch.id)
    assert batch.status == "completed"
    assert set(user.results(batch)) == {f"row-{number}" for number in range(400)}
    assert written_by_its_lost_attempts(checked) == 0
    assert sleeper.stop() == 0, sleeper.tail()


def written_by_its_lost_attempts(stack: services.Stack) -> int:
    """Count what the first worker wrote on leases that it lost."""
    (count,) = rows(
        stack,
        """
        SELECT count(*) FROM results x JOIN requests r USING (batch_id, line_no)
        JOIN shards s ON s.batch_id = x.batch_id AND s.model_no = r.model_no
                     AND x.line_no BETWEEN s.first_line AND s.last_line
        JOIN attempts a ON a.shard_id = s.id AND a.lease_token = x.lease_token
        WHERE a.end_reason = 'lost' AND a.worker_id = (SELECT worker_id FROM attempts ORDER BY started_at LIMIT 1)
        """,
    )
    return int(count)


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
    checked.leaves_open = True
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
