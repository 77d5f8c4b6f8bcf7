"""The stack on lines that a test can make bad: API and worker speak to Postgres, and the worker to Redis, by proxies."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import proxies
import services
from proxies import Proxy
from sqlalchemy import text

from api.stack import valkey
from api.stack.program import free_port


@dataclass(frozen=True)
class Wired:
    """API, reconciler and a worker. The reconciler is on good lines."""

    stack: services.Stack
    redis: services.Process
    worker: services.Process
    lines: dict[str, Proxy]

    def query(self, statement: str) -> list[Any]:
        """Run a statement, and return the first column of what it finds."""
        engine = self.stack.engine()
        with engine.begin() as connection:
            found = connection.execute(text(statement))
            values = list(found.scalars()) if found.returns_rows else []
        engine.dispose()
        return values


@contextmanager
def running(servers: services.Servers, template: str, home: Path) -> Iterator[Wired]:
    """Run a fresh one, with a Redis of its own that tests may stop and fill."""
    with ExitStack() as opened:
        port = free_port()
        redis = opened.enter_context(
            services.running(valkey.program(home / "valkey", port, services.PASSWORD), home / "valkey.log")
        )
        servers = services.Servers(servers.database_url, valkey.url(port, services.PASSWORD))
        stack = opened.enter_context(services.scripted_stack(servers, template, home))
        # A connection that does not answer is given up soon after.
        stack.settings = {**stack.settings, "PROMPTMILL_STATEMENT_SECONDS": "3"}
        lines = {
            name: opened.enter_context(proxies.serving(url))
            for name, url in [
                ("worker-redis", stack.redis_url),
                ("worker-postgres", stack.database_url),
                ("api-postgres", stack.database_url),
            ]
        }
        # Processes hang up before their proxies do.
        opened.callback(stack.stop)
        stack.api(PROMPTMILL_DATABASE_URL=lines["api-postgres"].url)
        stack.reconciler()
        worker = stack.worker(
            PROMPTMILL_DATABASE_URL=lines["worker-postgres"].url, PROMPTMILL_REDIS_URL=lines["worker-redis"].url
        )
        yield Wired(stack, redis, worker, lines)
