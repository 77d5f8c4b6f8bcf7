from collections.abc import Iterator
from pathlib import Path

import invariants
import pytest
import services
import wired as wiring
from brokers import OwnRedis
from proxies import GOOD


@pytest.fixture
def checked(stack: services.Stack) -> Iterator[services.Stack]:
    """A stack whose invariants are checked when the test is over."""
    yield stack
    invariants.check_stack(stack)


@pytest.fixture(scope="module")
def wires(servers: services.Servers, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[wiring.Wired]:
    with wiring.running(servers, template, tmp_path_factory.mktemp("wired")) as made:
        yield made


@pytest.fixture
def wired(wires: wiring.Wired) -> Iterator[wiring.Wired]:
    """A stack with proxies, one for all tests of a file; afterwards its lines are good and its invariants checked."""
    yield wires
    for proxy in wires.lines.values():
        proxy.poison(GOOD)
    invariants.check_stack(wires.stack)


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
