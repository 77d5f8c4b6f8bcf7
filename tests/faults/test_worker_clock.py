"""F39, F97: the clocks of workers are wrong by hours. Leases, deadlines and results go by the database's."""

import json
from datetime import datetime, timedelta
from pathlib import Path

import services
from brokers import injected, rows
from clients import User
from payloads import gated, numbered

# What kombu, Celery and we read; the kernel's clock cannot be set for one process.
SHIFTED = """
    import datetime, time
    real, OFFSET = time.time, {offset}
    time.time = lambda: real() + OFFSET
    class Shifted(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return super().now(tz) + datetime.timedelta(seconds=OFFSET)
    datetime.datetime = Shifted
"""


def test_workers_whose_clocks_disagree_by_two_days_run_each_shard_once(checked: services.Stack, tmp_path: Path) -> None:
    checked.api()
    checked.reconciler()
    workers = [
        checked.worker(**services.LONG_LEASES, **injected(tmp_path / name, SHIFTED.format(offset=offset)))
        for name, offset in (("ahead", 86_400), ("behind", -86_400))
    ]
    user = User(checked)
    gate = checked.home / "gate"
    batch = user.submit(numbered(3_000, gated(gate)))
    claimed = "SELECT DISTINCT worker_id FROM attempts"
    services.wait_until(lambda: len(rows(checked, claimed)) == 2, "both take part")
    gate.touch()
    batch = user.wait(batch.id)
    assert batch.status == "completed"
    assert set(user.results(batch)) == {f"row-{number}" for number in range(3_000)}
    ends = rows(checked, "SELECT worker_id, end_reason FROM attempts")
    assert [end for _, end in ends] == ["done"] * 12
    assert [worker.stop() for worker in workers] == [0, 0]
    ahead, behind = (last_written(worker) for worker in workers)
    assert ahead - behind > timedelta(days=1.9), "their clocks did disagree"


def last_written(worker: services.Process) -> datetime:
    return datetime.fromisoformat(json.loads(worker.log.read_text().splitlines()[-1])["timestamp"])
