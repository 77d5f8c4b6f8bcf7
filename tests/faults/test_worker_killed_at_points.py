"""F1, F2, F3, F4, F7, F44: what a shard's attempts and results say after its worker had an accident at one point.

It died there, its heartbeat hung, or its COMMIT got no answer.
"""

from collections import Counter
from collections.abc import Iterator

import invariants
import pytest
import services
from killing import SETTINGS, Backstage, Doomed, keep_alive, reached
from payloads import numbered

from jobs import db, suspects
from jobs.failpoints import VARIABLE

REQUESTS = 5


@pytest.fixture
def backstage(stack: services.Stack) -> Iterator[Backstage]:
    # Shards come by their hints only: a worker looks for others at its start and then no more.
    stack.settings = {**stack.settings, **SETTINGS, "PROMPTMILL_WORKER__POLL_SECONDS": "600"}
    made = Backstage(stack)
    yield made
    invariants.check_stack(stack)
    made.close()


def kill(stack: services.Stack, backstage: Backstage, point: str, nth: int = 1) -> str:
    """Have a worker killed at a point of its way with a batch of one shard; return the batch."""
    # When Celery is ready, the worker has looked for shards by itself.
    worker = Doomed(stack, "worker", point, ready=" ready.", nth=nth)
    worker.wait_ready()
    batch_id = backstage.submit(numbered(REQUESTS))
    backstage.hint(batch_id)
    worker.bury()
    return batch_id


def end(stack: services.Stack, backstage: Backstage, batch_id: str) -> None:
    worker = Doomed(stack, "worker", "none", ready="worker_ready")
    keep_alive(worker, backstage, lambda: backstage.status(batch_id) == "completed", "the batch ends")


def reasons(backstage: Backstage) -> list[str | None]:
    return [row.end_reason for row in backstage.execute("SELECT end_reason FROM attempts ORDER BY lease_token")]


def test_before_the_claim_is_committed_nothing_has_happened(stack: services.Stack, backstage: Backstage) -> None:
    batch_id = kill(stack, backstage, "claim_hinted.before_commit")
    (shard,) = backstage.execute("SELECT state, lease_token FROM shards")
    assert (shard.state, shard.lease_token, reasons(backstage)) == ("queued", 0, [])
    end(stack, backstage, batch_id)
    assert reasons(backstage) == ["done"]


def test_after_the_claim_the_shard_is_taken_back(stack: services.Stack, backstage: Backstage) -> None:
    batch_id = kill(stack, backstage, "claim_hinted.after_commit")
    assert reasons(backstage) == [None]
    end(stack, backstage, batch_id)
    assert reasons(backstage) == ["lost", "done"]


def test_what_was_committed_is_not_run_again(stack: services.Stack, backstage: Backstage) -> None:
    stack.settings = {**stack.settings, "PROMPTMILL_WORKER__FLUSH_OUTCOMES": "2"}
    batch_id = kill(stack, backstage, "write_results.before_commit", nth=2)
    seen = invariants.snapshot(backstage.engine)
    assert 0 < len(seen) <= 2
    end(stack, backstage, batch_id)
    tokens = Counter(row.lease_token for row in backstage.execute("SELECT lease_token FROM results"))
    assert tokens == {1: len(seen), 2: REQUESTS - len(seen)}
    invariants.check(backstage.engine, seen=seen)


def test_a_batch_whose_last_result_is_committed_ends_without_a_worker(
    stack: services.Stack, backstage: Backstage
) -> None:
    batch_id = kill(stack, backstage, "settle_batch.before_commit")
    assert backstage.status(batch_id) == "in_progress"
    backstage.sweep()
    assert backstage.status(batch_id) == "completed"
    assert reasons(backstage) == ["done"]


@pytest.mark.parametrize(
    ("point", "attempts"), [("claim_hinted", ["lost", "done"]), ("write_results", ["done"]), ("settle_batch", ["done"])]
)
def test_a_commit_without_an_answer_is_not_done_twice(
    stack: services.Stack, backstage: Backstage, point: str, attempts: list[str]
) -> None:
    worker = stack.worker(**{VARIABLE: f"{point}.after_commit:raise"})
    batch_id = backstage.submit(numbered(REQUESTS))
    backstage.hint(batch_id)

    def is_over() -> bool:
        backstage.sweep()
        return backstage.status(batch_id) == "completed"

    services.wait_until(is_over, "the batch ends")
    assert reached(worker, f"{point}.after_commit")
    assert reasons(backstage) == attempts
    assert worker.stop() == 0, worker.tail()


def test_a_worker_whose_heartbeat_hangs_writes_nothing_after_its_lease(
    stack: services.Stack, backstage: Backstage
) -> None:
    hung = stack.worker(**{VARIABLE: "renew_leases.after_commit:block"})
    # Longer than the lease: they end when it is another's.
    batch_id = backstage.submit(numbered(REQUESTS, lambda _: "SLEEP 5"))
    backstage.hint(batch_id)
    services.wait_until(lambda: reasons(backstage), "it is claimed")

    def is_lost() -> bool:
        # As the reconciler does, but for the hint: the hung one would hear it.
        with db.transaction(backstage.engine) as connection:
            for shard_id in suspects.lost(connection):
                suspects.take_back(connection, shard_id, most_deaths=2, grace_seconds=1)
        return "lost" in reasons(backstage)

    services.wait_until(is_lost, "the lease ends")
    # It looks for shards that nobody was told of when it starts; the other one does not look any more.
    stack.worker()
    services.wait_until(lambda: backstage.status(batch_id) == "completed", "the other one ends it")
    assert reasons(backstage) == ["lost", "done"]
    assert {row.lease_token for row in backstage.execute("SELECT lease_token FROM results")} == {2}
    assert hung.popen.poll() is None, "it lives"
    hung.kill()


def test_a_worker_whose_heartbeat_hangs_starts_nothing_near_the_end_of_its_lease(
    stack: services.Stack, backstage: Backstage
) -> None:
    """The last row would kill it. Its turn comes half a second after the worker stops by its own clock, or later."""
    own_clock = {"PROMPTMILL_SHARDS__LEASE_SECONDS": "8", "PROMPTMILL_SHARDS__LEASE_MARGIN_SECONDS": "4"}
    one_by_one = {"PROMPTMILL_WORKER__SCRIPTED_CAPACITY": "1", "PROMPTMILL_WORKER__WAITING_REQUESTS": "1"}
    # The writer, which would find out by itself that the lease is over, has nothing to do until then.
    later = {"PROMPTMILL_WORKER__FLUSH_SECONDS": "60"}
    hung = stack.worker(**own_clock, **one_by_one, **later, **{VARIABLE: "renew_leases.after_commit:block"})
    batch_id = backstage.submit(numbered(REQUESTS, lambda number: "SLEEP 1.5" if number < REQUESTS - 1 else "CRASH"))
    backstage.hint(batch_id)
    # Nobody takes the lease: what the worker does it does by itself.
    over = "SELECT FROM shards WHERE state = 'running' AND lease_until < app_now() - interval '2 seconds'"
    services.wait_until(lambda: backstage.execute(over), "the lease is over")
    assert hung.popen.poll() is None, "it has not started the last row"
    assert reached(hung, "renew_leases.after_commit"), "its heartbeat hangs"
    hung.kill()
    backstage.cancel(batch_id)
    backstage.sweep()
    assert backstage.status(batch_id) == "cancelled"
