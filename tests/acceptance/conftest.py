from collections.abc import Iterator

import invariants
import pytest
import services


@pytest.fixture(scope="module")
def running(
    servers: services.Servers, template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[services.Stack]:
    """API, reconciler and a worker for all tests of a file, each with a project of its own."""
    with services.running_stack(servers, template, tmp_path_factory.mktemp("stack")) as stack:
        yield stack
        engine = stack.engine()
        invariants.check(engine)
        engine.dispose()
