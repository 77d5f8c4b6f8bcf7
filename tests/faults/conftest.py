from collections.abc import Iterator

import invariants
import pytest
import services
import wired as wiring
from proxies import GOOD


@pytest.fixture
def checked(stack: services.Stack) -> Iterator[services.Stack]:
    """A stack whose invariants are checked when the test is over."""
    yield stack
    engine = stack.engine()
    invariants.check(engine)
    engine.dispose()


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
    engine = wires.stack.engine()
    invariants.check(engine)
    engine.dispose()
