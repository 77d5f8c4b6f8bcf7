"""F95: a batch is cancelled while its worker is stopped. The batch ends without it; what it brings later counts for nothing."""

import signal

import services
from clients import User, done
from payloads import gated, numbered


def test_a_worker_that_wakes_after_the_cancellation_changes_nothing(checked: services.Stack) -> None:
    checked.api()
    checked.reconciler()
    user = User(checked)
    worker = checked.worker()
    # Half of the rows are on their way when the worker stops, and come back when it goes on.
    gate = checked.home / "gate"
    batch = user.submit(numbered(60, gated(gate, 30)))
    user.wait_for(batch.id, lambda batch: done(batch) >= 30)
    worker.signal(signal.SIGSTOP)
    assert user.sdk.batches.cancel(batch.id).status == "cancelling"
    ended = user.wait(batch.id)
    assert ended.status == "cancelled"
    assert ended.request_counts and (ended.request_counts.completed, ended.request_counts.failed) == (30, 30)
    before = user.results(ended)
    gate.touch()
    worker.signal(signal.SIGCONT)
    services.wait_until(lambda: "shard_ended" in worker.log.read_text(), "it has let go")
    assert worker.stop() == 0, worker.tail()
    assert user.batch(batch.id) == ended
    assert user.results(ended) == before
    late = [row for name, row in before.items() if int(name.removeprefix("row-")) >= 30]
    assert {row["error"]["code"] for row in late} == {"batch_cancelled"}
