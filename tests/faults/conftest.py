from collections.abc import Iterator

import invariants
import pytest
import services


@pytest.fixture
def checked(stack: services.Stack) -> Iterator[services.Stack]:
    """A stack whose invariants are checked when the test is over."""
    yield stack
    engine = stack.engine()
    invariants.check(engine)
    engine.dispose()
