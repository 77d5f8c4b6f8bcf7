"""What every route needs: who calls, and the database."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, TypeVar

from fastapi import Depends, Header, Request
from sqlalchemy import Connection, Engine
from starlette.concurrency import run_in_threadpool

from jobs import db, idempotency, keys
from jobs.dispatch import Dispatcher
from jobs.errors import AuthenticationFailed
from jobs.idempotency import Call
from jobs.keys import Caller
from jobs.settings import Settings

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Context:
    """The parts of a running API process. One for each app, in `app.state.context`."""

    settings: Settings
    database: Engine
    dispatcher: Dispatcher

    async def transaction(self, work: Callable[[Connection], Answer]) -> Answer:
        """Run `work` in one transaction, off the event loop."""
        return await run_in_threadpool(self._transaction, work)

    def _transaction(self, work: Callable[[Connection], Answer]) -> Answer:
        with db.transaction(self.database) as connection:
            return work(connection)


def _context(request: Request) -> Context:
    context: Context = request.app.state.context
    return context


Here = Annotated[Context, Depends(_context)]


async def _caller(request: Request, context: Here) -> Caller:
    """Return who calls. Every route but the health checks depends on it.

    Raises:
        AuthenticationFailed: no key, or not one of ours.
    """
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        # Where clients of Anthropic's API have it.
        key = request.headers.get("x-api-key", "")
    if not key:
        message = "You didn't provide an API key. Send it as 'Authorization: Bearer YOUR_KEY'."
        raise AuthenticationFailed(message)
    return await context.transaction(lambda connection: keys.authenticate(connection, key.strip()))


Authenticated = Annotated[Caller, Depends(_caller)]


async def _call(
    request: Request,
    caller: Authenticated,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=idempotency.MAX_KEY_CHARS)] = None,
    x_stainless_retry_count: Annotated[str | None, Header(include_in_schema=False)] = None,
) -> Call:
    """Return whether the call that creates something may have been made before."""
    is_retry = (x_stainless_retry_count or "0") != "0"
    return Call(caller, request.url.path, key=idempotency_key, is_retry=is_retry)


Repeatable = Annotated[Call, Depends(_call)]
