from collections.abc import Iterator
from pathlib import Path

import invariants
import pytest
import services
from brokers import OwnRedis


@pytest.fixture
def checked(stack: services.Stack) -> Iterator[services.Stack]:
    """A stack whose invariants are checked when the test is over."""
    yield stack
    engine = stack.engine()
    invariants.check(engine)
    engine.dispose()


@pytest.fixture
def own_redis(checked: services.Stack, tmp_path: Path) -> Iterator[OwnRedis]:
    """A Valkey that only this test's stack uses; the stack is stopped before it."""
    made = OwnRedis(tmp_path)
    checked.redis_url = made.url
    try:
        yield made
    finally:
        checked.stop()
        made.process.stop()
