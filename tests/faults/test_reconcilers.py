"""F41: no reconciler, or three of them. Without one work goes on, later; three do nothing twice."""

import services
from brokers import QUEUE, hints_heard, rows
from clients import User
from payloads import gated, numbered
from receivers import REACHABLE, receiving


def test_without_a_reconciler_lost_hints_only_take_longer(checked: services.Stack) -> None:
    checked.api()
    checked.know_model("scripted")
    user = User(checked)
    batch = user.submit(numbered(600))
    with checked.redis() as broker:
        services.wait_until(lambda: broker.llen(QUEUE) == 3, "hints are sent")
        broker.flushall()
    worker = checked.worker()
    batch = user.wait(batch.id)
    assert batch.status == "completed"
    assert set(user.results(batch)) == {f"row-{number}" for number in range(600)}
    assert hints_heard(worker) == 0


def test_three_reconcilers_do_nothing_twice(checked: services.Stack) -> None:
    checked.settings = {**checked.settings, **REACHABLE}
    checked.api()
    reconcilers = [checked.reconciler() for _ in range(3)]
    user = User(checked)
    with receiving() as receiver:
        user.sdk.webhooks.create(url=receiver.url, name="", event_types=["batch.completed"])
        first = checked.worker()
        gate = checked.home / "gate"
        batches = [user.submit(numbered(50, gated(gate, 25))) for _ in range(6)]
        aboard = "SELECT count(*) FROM attempts WHERE aboard_line = 50"
        services.wait_until(lambda: rows(checked, aboard) == [6], "all rows may be aboard")
        first.kill()
        gate.touch()
        checked.worker()
        ended = [user.wait(batch.id) for batch in batches]
        assert {batch.status for batch in ended} == {"completed"}
        services.wait_until(lambda: len(receiver.messages) >= 6, "messages have come")
        assert [reconciler.stop() for reconciler in reconcilers] == [0, 0, 0]
        assert len({message.id for message in receiver.messages}) == len(receiver.messages) == 6
    lost = rows(checked, "SELECT shard_id FROM attempts WHERE end_reason = 'lost'")
    logs = "".join(reconciler.log.read_text() for reconciler in reconcilers)
    assert lost
    assert sorted(lost) == sorted(set(lost))
    assert [logs.count(f'"{shard_id}"') for shard_id in lost] == [1] * len(lost), "each is taken back by one of them"
