"""Hints to workers, through Celery on Redis: "this shard waits". A hint carries an id and obliges nobody.

    queue `shards.<model>`    task `shards.run`    arguments: [shard id]

What the settings below answer to was measured or read in celery 5.7 and kombu 5.7; docs/decisions/0003 has the list.
"""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

from celery import Celery
from kombu import Queue
from sqlalchemy import Engine, func, select, update

from jobs import batches, db, hints, metrics, telemetry
from jobs.errors import ConfigurationError
from jobs.failpoints import failpoint
from jobs.settings import Settings
from jobs.tables import shards

RUN_SHARD = "shards.run"
_HINTS_PER_TRANSACTION = 100
# Batches whose hints may wait for a slow Redis; the reconciler sends those of others.
_MAX_LATER = 100

log = telemetry.get_logger(__name__)


def make_celery(settings: Settings) -> Celery:
    """Return a Celery app for producers and workers. Nothing is connected yet."""
    app = Celery("promptmill", broker=settings.redis_url.get_secret_value(), set_as_current=False)
    app.conf.update(
        # JSON only: one line here would otherwise let anybody with Redis access run code in a worker.
        task_serializer="json",
        accept_content=["json"],
        # Results are rows. A Redis back-end would expire them and leak memory.
        task_ignore_result=True,
        result_backend=None,
        # One re-driver only, and that is Postgres: Celery's own redelivery loses or doubles tasks.
        task_acks_late=False,
        task_reject_on_worker_lost=False,
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        # With it on, whoever can write to Redis can shut workers down.
        worker_enable_remote_control=False,
        # A Redis that is away must not take a worker down, nor block a producer.
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        # Nor must one that answers with an error: full, read-only after a failover, no room for its own files.
        broker_channel_error_retry=True,
        task_publish_retry=False,
        broker_transport_options={
            "visibility_timeout": 3_600,
            "socket_timeout": 5,
            "socket_connect_timeout": 3,
            "socket_keepalive": True,
            "health_check_interval": 10,
            "global_keyprefix": "promptmill:",
        },
        # Flower lives on these.
        worker_send_task_events=True,
        task_send_sent_event=True,
        event_queue_ttl=60,
        task_create_missing_queues=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
    )
    return app


def require_noeviction(settings: Settings) -> None:
    """Make sure that Redis keeps hints when its memory is full. One that is away or does not tell is taken as it is.

    Raises:
        ConfigurationError: it would throw hints away, without an error for anybody.
    """
    try:
        with make_celery(settings).connection_for_read() as connection:
            channel: Any = connection.default_channel
            policy = channel.client.info("memory").get("maxmemory_policy")
    except Exception as error:  # noqa: BLE001  Redis is looked for again and again, and done without
        log.warning("redis_not_checked", error=type(error).__name__)
        return
    if policy not in (None, "noeviction"):
        message = f"Redis has `maxmemory-policy {policy}`, which throws hints away. Set it to `noeviction`."
        raise ConfigurationError(message)


def queue_for(model: str) -> Queue:
    """Return the queue of the workers that serve `model`."""
    name = f"shards.{quote(model, safe='')}"
    return Queue(name, routing_key=name)


class Dispatcher:
    """Sends hints. Best effort: a hint that cannot be sent now is sent by the reconciler."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self._engine = engine
        self._celery = make_celery(settings)
        # One thread: while Redis hangs, it hangs, and nothing else does.
        self._later = ThreadPoolExecutor(1, thread_name_prefix="hints")
        self._room = threading.BoundedSemaphore(_MAX_LATER)

    def hint_later(self, batch_id: str) -> None:
        """Announce the shards of a batch that was just committed, without making anybody wait."""
        if self._room.acquire(blocking=False):
            self._later.submit(self.hint_batch, batch_id).add_done_callback(lambda _: self._room.release())

    def close(self) -> None:
        """Send no more hints. The one under way is waited for; the reconciler sends the others."""
        self._later.shutdown(cancel_futures=True)
        self._celery.close()

    def hint_batch(self, batch_id: str) -> None:
        """Announce the shards of a batch that was just committed. Does not raise."""
        try:
            with db.reading(self._engine) as connection:
                shard_ids = batches.shards_without_hint(connection, batch_id)
            self.hint(shard_ids)
        except Exception as error:  # noqa: BLE001  the reconciler will do it; the batch is safe
            metrics.HINTS.labels("failed").inc()
            log.warning("hints_failed", batch_id=batch_id, error=type(error).__name__)

    def hint_overdue(self, hint_seconds: float) -> int:
        """Announce queued shards whose hint was never sent or seems lost; return how many."""
        with db.reading(self._engine) as connection:
            found = hints.to_hint(connection, hint_seconds=hint_seconds)
        due = [shard_id for model, unhinted in found.items() for shard_id in self._due(model, unhinted)]
        self.hint(due)
        return len(due)

    def _due(self, model: str, unhinted: hints.Unhinted) -> list[str]:
        # As many messages as shards: none is lost, the workers are busy. Sending them again would only pile up.
        if unhinted.overdue and self._waiting(model) >= len(unhinted.overdue):
            return unhinted.new
        return unhinted.overdue + unhinted.new

    def _waiting(self, model: str) -> int:
        """Return how many hints wait in Redis for the workers of a model."""
        with self._celery.connection_for_read() as connection:
            declared: Any = queue_for(model).bind(connection.default_channel).queue_declare()
            return int(declared.message_count)

    def hint(self, shard_ids: Sequence[str]) -> None:
        """Announce shards, in this order, and note when. Raises what Celery or Postgres raises."""
        for start in range(0, len(shard_ids), _HINTS_PER_TRANSACTION):
            self._hint_some(shard_ids[start : start + _HINTS_PER_TRANSACTION])

    def _hint_some(self, shard_ids: Sequence[str]) -> None:
        # Noted before they are sent: a worker that is quicker than our commit would find no hint to wait for.
        chosen = select(shards).where(shards.c.id.in_(shard_ids)).order_by(shards.c.id).with_for_update()
        noted = update(shards).where(shards.c.id.in_(shard_ids)).values(hinted_at=func.app_now())
        with db.transaction(self._engine, point="note_hints") as connection:
            rows = sorted(connection.execute(chosen).all(), key=lambda row: (row.created_at, row.number))
            connection.execute(noted)
        with self._celery.producer_or_acquire() as producer:
            for row in rows:
                failpoint("send_hint.before_publish")
                self._celery.send_task(
                    RUN_SHARD,
                    args=[row.id],
                    queue=queue_for(row.model),  # type: ignore[arg-type] # a Queue is declared, a name is not
                    producer=producer,
                    # What Flower shows in place of the arguments: ids and counts.
                    argsrepr=f"({row.total - row.completed - row.failed} rows, attempt {row.lease_token + 1}, "
                    f"{row.batch_id}, {row.id}, lines {row.first_line}-{row.last_line})",
                )
                failpoint("send_hint.after_publish")
                metrics.HINTS.labels("sent").inc()
