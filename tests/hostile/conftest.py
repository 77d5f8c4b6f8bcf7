from collections.abc import Iterator
from typing import Any

import invariants
import pytest
import services
from clients import User
from sqlalchemy import text


class Server:
    """One API process, and what is in its database."""

    def __init__(self, stack: services.Stack, **environment: str) -> None:
        self.stack, self.port = stack, stack.port
        self.process = stack.start("serve", wait_for="Uvicorn running on", **environment)
        self.pid = self.process.popen.pid
        self.key = stack.key()
        self._engine = stack.engine()
        self._users: list[User] = []

    def user(self, key: str | None = None) -> User:
        self._users.append(User(self.stack, key or self.key))
        return self._users[-1]

    def rows(self, statement: str) -> list[Any]:
        with self._engine.connect() as connection:
            return list(connection.execute(text(statement)))

    def has_nothing(self) -> bool:
        """Tell whether no upload left anything."""
        return not self.rows("SELECT FROM files") and not self.rows("SELECT FROM lines LIMIT 1")

    def busy(self) -> list[Any]:
        """Return the transactions that are open, ours excepted."""
        return self.rows(
            "SELECT state, query FROM pg_stat_activity WHERE datname = current_database() "
            "AND state <> 'idle' AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )

    def close(self) -> None:
        for user in self._users:
            user.sdk.close()
        invariants.check(self._engine)
        self._engine.dispose()


@pytest.fixture
def start(stack: services.Stack) -> Iterator[Any]:
    """Start an API process with settings of its own."""
    started: list[Server] = []

    def make(**environment: str) -> Server:
        started.append(Server(stack, **environment))
        return started[-1]

    yield make
    for server in started:
        server.close()


@pytest.fixture(scope="module")
def server(servers: services.Servers, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One API process for all tests of a file."""
    with services.scripted_stack(servers, template, tmp_path_factory.mktemp("stack")) as stack:
        made = Server(stack, PROMPTMILL_API__BODY_GRACE_SECONDS="3", PROMPTMILL_LIMITS__MAX_FILE_BYTES="10000000")
        yield made
        made.close()
