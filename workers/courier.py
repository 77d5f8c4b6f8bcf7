"""Sends the messages that `jobs.outbox` holds. Any number of couriers may run; each endpoint has one at a time."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Self, TypeVar

from sqlalchemy import Connection

from jobs import db, outbox, telemetry
from jobs.outbox import Answer, Delivery
from jobs.settings import Settings
from workers import network, outbound, reconciler_metrics

log = telemetry.get_logger(__name__)

Result = TypeVar("Result")


class Courier:
    """Sends from the beginning of its `with` block to the end, on a thread of its own."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings.webhooks
        # Held for the short transactions before and after an attempt, not while it is under way.
        self._database = db.make_engine(
            settings.database_url.get_secret_value(), connections=2, statement_seconds=settings.statement_seconds
        )
        # Threads of their own: a look-up that hangs keeps its thread, and no lease may end for that.
        self._transactions = ThreadPoolExecutor(2, thread_name_prefix="courier-transactions")
        self._pool = network.make_pool(self._settings, connections=self._settings.max_at_once)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._work()), name="courier")
        self._stopping = threading.Event()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop when what is under way has come to its end."""
        self._stopping.set()
        self._thread.join()
        self._transactions.shutdown()
        self._database.dispose()

    async def _work(self) -> None:
        # Look-ups of names wait in these threads, and one may hang.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2 * self._settings.max_at_once + 2))
        async with self._pool, asyncio.TaskGroup() as tasks:
            free = asyncio.Semaphore(self._settings.max_at_once)
            while not self._stopping.is_set():
                await free.acquire()
                delivery = await self._take()
                if delivery is None:
                    free.release()
                    await asyncio.to_thread(self._stopping.wait, self._settings.poll_seconds)
                else:
                    tasks.create_task(self._deliver(delivery)).add_done_callback(lambda _: free.release())

    async def _take(self) -> Delivery | None:
        # Repeated after a COMMIT of unknown outcome it may lease a second one; the first comes again after its lease.
        try:
            return await self._transaction(
                lambda connection: outbox.take(connection, self._settings), point="take_message"
            )
        except Exception as error:  # noqa: BLE001  Postgres away, say; it looks again
            log.warning("webhooks_not_read", error=db.reason(error))
            return None

    async def _deliver(self, delivery: Delivery) -> None:
        answer = await outbound.post(self._pool, delivery, self._settings)
        _note(delivery, answer)
        try:
            await self._transaction(
                lambda connection: outbox.note(connection, delivery, answer, self._settings), point="note_message"
            )
        except Exception as error:  # noqa: BLE001  its lease ends, and it is sent again
            log.warning("webhook_not_noted", delivery_id=delivery.event.id, error=type(error).__name__)

    async def _transaction(self, work: Callable[[Connection], Result], *, point: str) -> Result:
        loop = asyncio.get_running_loop()
        retried = partial(db.retrying, self._database, work, point=point)
        return await loop.run_in_executor(self._transactions, retried)


def _note(delivery: Delivery, answer: Answer) -> None:
    # Not the URL: what comes after its `?` may be a secret.
    reconciler_metrics.WEBHOOKS.labels("arrived" if answer.is_success else "failed").inc()
    write = log.info if answer.is_success else log.warning
    write(
        "webhook_sent",
        delivery_id=delivery.event.id,
        endpoint_id=delivery.endpoint_id,
        batch_id=delivery.event.batch_id,
        attempt=delivery.attempt,
        status=answer.status,
        error=answer.error,
    )
