import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import services
import watch
from alembic import command
from alembic.config import Config
from sqlalchemy import Engine

from jobs import db, settings

ROOT = Path(__file__).resolve().parent.parent
# Folders whose files take longest come first, so that no process is left alone with a long one at the end.
LONGEST_FIRST = ["soak", "faults", "acceptance", "engines", "hostile", "integration"]
# Suites of their own: against a server that they are told (`make conformance`), and where vLLM is (`make test-vllm`).
collect_ignore = ["conformance", "conformance_anthropic", "vllm_engine", "vllm_service"]
# Who runs in the background of a script ignores Ctrl-C, and so would all that a test starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# A developer's own settings have no say in a test.
for name in [name for name in os.environ if name.startswith(settings.PREFIX)]:
    if not name.startswith(settings.TEST_PREFIX):
        del os.environ[name]
os.environ["PROMPTMILL_WEBHOOKS__KEY_FILE"] = str(services.KEY_FILE)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort by folder, files and tests in the order that they have."""
    folders = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: folders.get(item.path.relative_to(ROOT / "tests").parts[0], len(folders)))


def migrate(url: str, revision: str = "head") -> None:
    """Bring a database to a revision; at the newest one, it is watched too."""
    engine = db.make_engine(url, connections=1)
    config = Config(ROOT / "alembic.ini")
    try:
        with engine.connect() as connection:
            config.attributes["connection"] = connection
            (command.upgrade if revision == "head" else command.downgrade)(config, revision)
        if revision == "head":
            with engine.begin() as connection:
                watch.install(connection)
    finally:
        engine.dispose()


@pytest.fixture(scope="session")
def servers() -> Iterator[services.Servers]:
    # Not below pytest's own folder, which Postgres, run as another user when we are root, may not enter.
    with tempfile.TemporaryDirectory(prefix="promptmill-test-") as home, services.servers(Path(home)) as found:
        yield found


@pytest.fixture(scope="session")
def template(servers: services.Servers) -> Iterator[str]:
    """Name of a migrated database that tests get copies of."""
    with services.fresh_database(servers) as name:
        migrate(servers.database(name))
        yield name


@pytest.fixture
def database_url(servers: services.Servers, template: str) -> Iterator[str]:
    with services.fresh_database(servers, template) as name:
        yield servers.database(name)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    made = db.make_engine(database_url, connections=10)
    yield made
    made.dispose()


@pytest.fixture
def stack(servers: services.Servers, template: str, tmp_path: Path) -> Iterator[services.Stack]:
    """The product's processes, none started yet, on short leases and the scripted engine."""
    with services.scripted_stack(servers, template, tmp_path) as made:
        yield made
