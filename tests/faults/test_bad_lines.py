"""Every toxic on every line: between worker and Redis, worker and Postgres, API and Postgres. Batches complete."""

from pathlib import Path

import pytest
import services
from clients import User
from payloads import gated, numbered
from proxies import GOOD, TOXICS
from wired import Wired

ROWS = 60
# How often a toxic has bitten when the rows are answered, and when it is lifted.
BITES, MORE_BITES = 5, 10
# These bite an idle line once, and then it is over; and these take a connection each time, which Celery opens again later
# and later.
ONCE = ("half-open", "slow to close")
SELDOM = {"cut": 2, "reset": 2}


@pytest.mark.parametrize("line", ["worker-redis", "worker-postgres", "api-postgres"])
@pytest.mark.parametrize("toxic", TOXICS)
def test_a_batch_completes_over_a_line_that_was_bad(wired: Wired, tmp_path: Path, toxic: str, line: str) -> None:
    user, proxy, gate = User(wired.stack), wired.lines[line], tmp_path / "gate"
    batch = user.submit(numbered(ROWS, gated(gate)))
    services.wait_until(lambda: wired.query("SELECT id FROM shards WHERE state = 'running'"), "it runs")
    proxy.poison(TOXICS[toxic])
    if toxic == "slow to close":
        proxy.reset()

    def harmed(times: int) -> bool:
        # The answer is good, or 503 with the time to come again.
        user.look(batch.id)
        return proxy.harmed >= (1 if toxic in ONCE else SELDOM.get(toxic, times))

    services.wait_until(lambda: harmed(BITES), "the line is bad")
    assert wired.query(f"SELECT status FROM batches WHERE id = '{batch.id}'") == ["in_progress"], "it was running"
    # Answers come while the line is bad, too.
    gate.touch()
    services.wait_until(lambda: harmed(MORE_BITES), "the line is still bad")
    proxy.poison(GOOD)
    services.wait_until(lambda: user.look(batch.id), "the API answers")
    batch = user.wait(batch.id)
    assert batch.status == "completed"
    assert set(user.results(batch)) == {f"row-{number}" for number in range(ROWS)}
