"""F15, F21, F24: an engine that does not start, dies while it is idle, or dies of every request. Nobody is blamed."""

from typing import Any

import pytest
import services
from clients import User
from payloads import numbered
from sqlalchemy import text
from supervised import supervised

# Opens with the second failure, for longer than a test takes.
BREAKER = {"PROMPTMILL_WORKER__BREAKER_FAILURES": "2", "PROMPTMILL_WORKER__BREAKER_SECONDS": "300"}


def failures(stack: services.Stack) -> list[Any]:
    engine = stack.engine()
    with engine.connect() as connection:
        found = connection.execute(text("SELECT failures, open_until > app_now() AS is_open FROM breakers")).all()
    engine.dispose()
    return [tuple(row) for row in found]


@pytest.mark.parametrize("fault", ["start", "idle", "requests"])
def test_an_engine_that_dies_with_nothing_aboard_is_kept_from_starting(checked: services.Stack, fault: str) -> None:
    checked.api()
    checked.reconciler()
    checked.know_model("scripted")
    user = User(checked)
    with supervised(checked, PROMPTMILL_WORKER__SCRIPTED_FAULT=fault, **BREAKER) as broken:
        services.wait_until(lambda: failures(checked) == [(2, True)], "the breaker opens")
        services.wait_until(
            lambda: any('"breaker_open"' in log.read_text() for log in checked.home.glob("worker*")), ""
        )
        batch = user.submit(numbered(3))
        # Another host has another name, and another breaker.
        engine = checked.engine()
        with engine.begin() as connection:
            connection.execute(text("UPDATE breakers SET hostname = 'elsewhere'"))
        engine.dispose()
        checked.worker()
        batch = user.wait(batch.id)
        assert len(broken.ends) == 2
    assert batch.status == "completed"
    assert batch.request_counts and batch.request_counts.failed == 0
    engine = checked.engine()
    with engine.connect() as connection:
        assert set(connection.execute(text("SELECT end_reason FROM attempts")).scalars()) == {"done"}
        assert connection.execute(text("SELECT count(*) FROM shards WHERE suspect_since IS NOT NULL")).scalar_one() == 0
    engine.dispose()
