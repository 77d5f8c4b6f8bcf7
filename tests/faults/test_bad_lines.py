"""Every toxic on every line: between worker and Redis, worker and Postgres, API and Postgres. Batches complete."""

import pytest
import services
from clients import User
from payloads import numbered
from proxies import GOOD, TOXICS
from wired import Wired

ROWS = 60
# How often a toxic has bitten when it is lifted. These bite an idle line once, and then it is over.
BITES = 5
ONCE = ("half-open", "slow to close")


@pytest.mark.parametrize("line", ["worker-redis", "worker-postgres", "api-postgres"])
@pytest.mark.parametrize("toxic", TOXICS)
def test_a_batch_completes_over_a_line_that_was_bad(wired: Wired, toxic: str, line: str) -> None:
    user, proxy = User(wired.stack), wired.lines[line]
    batch = user.submit(numbered(ROWS, lambda number: f"SLEEP 0.5 {number}"))
    proxy.poison(TOXICS[toxic])
    if toxic == "slow to close":
        proxy.reset()

    def harmed() -> bool:
        # The answer is good, or 503 with the time to come again.
        user.look(batch.id)
        return proxy.harmed >= (1 if toxic in ONCE else BITES)

    services.wait_until(harmed, "the line is bad")
    proxy.poison(GOOD)
    services.wait_until(lambda: user.look(batch.id), "the API answers")
    batch = user.wait(batch.id)
    assert batch.status == "completed"
    assert set(user.results(batch)) == {f"row-{number}" for number in range(ROWS)}
