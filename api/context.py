"""What every route needs: who calls, and the database."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated, TypeVar

from anyio import CapacityLimiter
from fastapi import Depends, Header, Request, Security
from fastapi.security import SecurityScopes
from sqlalchemy import Connection, Engine
from starlette.concurrency import run_in_threadpool

from jobs import db, idempotency, keys, quotas, telemetry
from jobs.dispatch import Dispatcher
from jobs.errors import AuthenticationFailed, Unavailable
from jobs.idempotency import Call
from jobs.keys import Caller, Scope
from jobs.settings import Settings

Answer = TypeVar("Answer")

# Uploads that one process puts together at a time: it takes minutes, and calls share a fixed number of threads.
MAX_JOINS = 2


@dataclass(frozen=True)
class Context:
    """The parts of a running API process. One for each app, in `app.state.context`."""

    settings: Settings
    database: Engine
    dispatcher: Dispatcher
    turns: asyncio.Semaphore
    """As many as there are connections: who waits for one takes no thread from others."""
    joins: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(MAX_JOINS))
    """Threads of their own for uploads that are put together."""

    async def transaction(self, caller: Caller | None, work: Callable[[Connection], Answer], *, point: str) -> Answer:
        """Run `work` in one transaction, off the event loop; with a caller, Postgres shows it its project only.

        `work` may run again, if nothing of it was done. `point` names its failpoints.

        Raises:
            Unavailable: Postgres is away or full, or for some seconds other calls had all connections.
        """
        project_id, key_id = (caller.project_id, caller.key_id) if caller else (None, "")
        async with self._turn():
            return await run_in_threadpool(db.once, self.database, work, project_id, key_id=key_id, point=point)

    async def reading(self, caller: Caller | None, work: Callable[[Connection], Answer]) -> Answer:
        """Run `work`, which writes nothing, in one transaction; otherwise as `transaction`."""
        async with self._turn():
            return await run_in_threadpool(db.read, self.database, work, caller.project_id if caller else None)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(db.WAIT_SECONDS):
                await self.turns.acquire()
        except TimeoutError as error:
            raise Unavailable from error
        try:
            yield
        finally:
            self.turns.release()


def _context(request: Request) -> Context:
    context: Context = request.app.state.context
    return context


Here = Annotated[Context, Depends(_context)]


async def _caller(request: Request, needs: SecurityScopes, context: Here) -> Caller:
    """Return who calls. Every route but the health checks depends on it, and says which scopes it needs.

    Raises:
        AuthenticationFailed: no key, or not one of ours.
        PermissionDenied: the key lacks a scope.
        QuotaExceeded: the project had its calls of this minute.
    """
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        # Where clients of Anthropic's API have it.
        key = request.headers.get("x-api-key", "")
    if not key:
        message = "You didn't provide an API key. Send it as 'Authorization: Bearer YOUR_KEY'."
        raise AuthenticationFailed(message)
    caller = await admit(context, key.strip())
    caller.require(needs.scopes)
    return caller


async def admit(context: Context, key: str) -> Caller:
    """Return who the key stands for, and count a call of its project.

    Raises:
        AuthenticationFailed: it is none of ours.
        QuotaExceeded: the project had its calls of this minute.
    """
    default = context.settings.limits.quotas.calls_per_minute

    def count(connection: Connection) -> Caller:
        caller = keys.authenticate(connection, key)
        most = caller.calls_per_minute
        quotas.take_call(connection, caller.project_id, default if most is None else most)
        return caller

    caller = await context.transaction(None, count, point="admit_call")
    telemetry.add(project_id=caller.project_id, key_id=caller.key_id)
    return caller


FilesReader = Annotated[Caller, Security(_caller, scopes=[Scope.FILES_READ])]
FilesWriter = Annotated[Caller, Security(_caller, scopes=[Scope.FILES_WRITE])]
BatchesReader = Annotated[Caller, Security(_caller, scopes=[Scope.BATCHES_READ])]
BatchesWriter = Annotated[Caller, Security(_caller, scopes=[Scope.BATCHES_WRITE])]
WebhooksReader = Annotated[Caller, Security(_caller, scopes=[Scope.WEBHOOKS_READ])]
WebhooksWriter = Annotated[Caller, Security(_caller, scopes=[Scope.WEBHOOKS_WRITE])]
ModelsReader = Annotated[Caller, Security(_caller, scopes=[Scope.MODELS_READ])]


async def _call(
    request: Request,
    caller: Annotated[Caller, Depends(_caller)],
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=idempotency.MAX_KEY_CHARS)] = None,
    x_stainless_retry_count: Annotated[str | None, Header(include_in_schema=False)] = None,
) -> Call:
    """Return whether the call that creates something may have been made before."""
    is_retry = (x_stainless_retry_count or "0") != "0"
    return Call(caller, request.scope["path"], key=idempotency_key, is_retry=is_retry)


CreatesFile = Annotated[Call, Security(_call, scopes=[Scope.FILES_WRITE])]
CreatesBatch = Annotated[Call, Security(_call, scopes=[Scope.BATCHES_WRITE])]
# A message batch is its files too: they are made, read and deleted with it.
MessagesReader = Annotated[Caller, Security(_caller, scopes=[Scope.BATCHES_READ, Scope.FILES_READ])]
MessagesWriter = Annotated[Caller, Security(_caller, scopes=[Scope.BATCHES_WRITE, Scope.FILES_WRITE])]
CreatesMessages = Annotated[Call, Security(_call, scopes=[Scope.BATCHES_WRITE, Scope.FILES_WRITE])]
CreatesWebhook = Annotated[Call, Security(_call, scopes=[Scope.WEBHOOKS_WRITE])]
