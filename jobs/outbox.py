"""Messages to webhooks: written with the end of a batch, sent until they arrive or are given up.

    waits (next_at) -> delivered      the receiver answered 2xx
                    -> given up       the pauses are used up, or the endpoint is gone (410)

A message is a row, and the row is written in the transaction that ends the batch: there is one exactly if the batch
ended. A courier leases an endpoint (`free_at`), sends its message that has been due longest, and notes what came of it.
If it dies in between, the lease ends and the same message is sent again: at least once, with the same id.

Locks are taken in one order, endpoint before message.
"""

import random
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, delete, func, text

from jobs import events, vault
from jobs.errors import ConfigurationError
from jobs.events import Event
from jobs.settings import Webhooks
from jobs.states import BatchStatus
from jobs.tables import webhook_deliveries

# On top of an attempt's own time: what the look-up of a name may overrun it by, and the note about it.
LEASE_MARGIN_SECONDS = 30
# A little sooner or later, so that messages that failed together do not come back together.
JITTER = 0.1
MAX_RETRY_AFTER_SECONDS = 86_400
GONE = 410
BUSY = (429, 503)

# The lock keeps an endpoint that is being deleted at this moment from failing the batch's own transaction.
_ANNOUNCE = text(
    """
    INSERT INTO webhook_deliveries (id, project_id, endpoint_id, batch_id, type, next_at)
    SELECT 'evt_' || replace(gen_random_uuid()::text, '-', ''), b.project_id, e.id, b.id, :type, app_now()
    FROM batches b JOIN webhook_endpoints e ON e.project_id = b.project_id
    WHERE b.id = :batch_id AND e.disabled_at IS NULL AND :type = ANY (e.event_types)
    FOR KEY SHARE OF e
    """
)


def announce(connection: Connection, batch_id: str, status: BatchStatus) -> None:
    """Write a message for each endpoint of the batch's project that wants to know of this end."""
    connection.execute(_ANNOUNCE, {"batch_id": batch_id, "type": events.event_type(status)})


@dataclass(frozen=True)
class Delivery:
    """One attempt to send a message."""

    event: Event
    endpoint_id: str
    url: str
    headers: dict[str, str] | None
    """None: its secret cannot be read, and unsigned nothing is sent."""
    attempt: int
    """Counted from 1."""


_LEASE = text(
    """
    UPDATE webhook_endpoints SET free_at = app_now() + make_interval(secs => :seconds)
    WHERE id = (
        SELECT e.id FROM webhook_endpoints e
        WHERE e.free_at <= app_now() AND e.disabled_at IS NULL
          AND EXISTS (SELECT FROM webhook_deliveries d WHERE d.endpoint_id = e.id AND d.next_at <= app_now())
        ORDER BY (SELECT count(*) FROM webhook_endpoints o WHERE o.project_id = e.project_id AND o.free_at > app_now()),
                 e.free_at
        LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED)
    RETURNING id, url, secret, CASE WHEN previous_secret_until > app_now() THEN previous_secret END AS previous_secret
    """
)
_TAKE = text(
    """
    UPDATE webhook_deliveries SET attempts = attempts + 1, attempted_at = app_now()
    WHERE id = (SELECT id FROM webhook_deliveries WHERE endpoint_id = :endpoint_id AND next_at <= app_now()
                ORDER BY next_at LIMIT 1 FOR UPDATE)
    RETURNING id, type, batch_id, created_at, attempts, attempted_at
    """
)


def take(connection: Connection, settings: Webhooks) -> Delivery | None:
    """Lease the endpoint whose turn it is, and return its message to send; None when nothing is due.

    It is one of the project to which the fewest messages are under way, and of those the one that has waited longest.

    No other courier is at this endpoint until the lease ends or `note` is called.
    """
    endpoint = connection.execute(_LEASE, {"seconds": settings.timeout_seconds + LEASE_MARGIN_SECONDS}).one_or_none()
    if endpoint is None:
        return None
    row = connection.execute(_TAKE, {"endpoint_id": endpoint.id}).one_or_none()
    if row is None:
        return None
    event = Event(row.id, row.type, row.batch_id, row.created_at)
    stored = [secret for secret in (endpoint.secret, endpoint.previous_secret) if secret]
    headers = _headers(event, stored, row.attempted_at, settings)
    return Delivery(event, endpoint.id, endpoint.url, headers, row.attempts)


def _headers(event: Event, stored: list[str], sent_at: datetime, settings: Webhooks) -> dict[str, str] | None:
    # An endpoint whose secret cannot be read must hold up no other: its messages are tried again as if it were away.
    try:
        return events.headers(event, [vault.unseal(each, settings.key_file) for each in stored], sent_at)
    except ConfigurationError:
        return None


@dataclass(frozen=True)
class Answer:
    """What came of an attempt: the status of the receiver's answer, or why there is none."""

    status: int | None = None
    error: str | None = None
    retry_after_seconds: float = 0

    @property
    def is_success(self) -> bool:
        return self.status is not None and 200 <= self.status < 300


def pause_seconds(attempt: int, answer: Answer, settings: Webhooks) -> float | None:
    """Return how long to wait after attempt number `attempt`; None: it arrived, or the pauses are used up."""
    if answer.is_success or attempt > len(settings.retry_seconds):
        return None
    pause = settings.retry_seconds[attempt - 1] * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311  no secret
    asked = answer.retry_after_seconds if answer.status in BUSY else 0
    return max(pause, min(asked, MAX_RETRY_AFTER_SECONDS))


_FREE = text(
    """
    UPDATE webhook_endpoints
    SET free_at = app_now(), disabled_at = CASE WHEN :is_gone AND url = :url THEN app_now() ELSE disabled_at END
    WHERE id = :endpoint_id RETURNING disabled_at IS NOT NULL AS is_disabled
    """
)
# An attempt that was overtaken by the next one has nothing to say any more.
_NOTE = text(
    """
    UPDATE webhook_deliveries
    SET last_status = :status, last_error = :error,
        next_at = app_now() + make_interval(secs => CAST(:pause AS float8)),
        delivered_at = CASE WHEN :is_success THEN app_now() END,
        given_up_at = CASE WHEN NOT :is_success AND CAST(:pause AS float8) IS NULL THEN app_now() END
    WHERE id = :id AND attempts = :attempt AND next_at IS NOT NULL
    """
)
_GIVE_UP = text(
    """
    UPDATE webhook_deliveries SET next_at = NULL, given_up_at = app_now()
    WHERE endpoint_id = :endpoint_id AND next_at IS NOT NULL
    """
)


def note(connection: Connection, delivery: Delivery, answer: Answer, settings: Webhooks) -> None:
    """Write down what came of the attempt, and let others have the endpoint. Twice is as good as once.

    An endpoint that answered 410 is disabled, and its messages are given up.
    """
    values = {"endpoint_id": delivery.endpoint_id, "url": delivery.url, "is_gone": answer.status == GONE}
    endpoint = connection.execute(_FREE, values).one_or_none()
    if endpoint is None:
        return
    _note_message(connection, delivery, answer, pause_seconds(delivery.attempt, answer, settings))
    if endpoint.is_disabled:
        connection.execute(_GIVE_UP, {"endpoint_id": delivery.endpoint_id})


def _note_message(connection: Connection, delivery: Delivery, answer: Answer, pause: float | None) -> None:
    values = {
        "id": delivery.event.id,
        "attempt": delivery.attempt,
        "status": answer.status,
        "error": answer.error,
        "is_success": answer.is_success,
        "pause": pause,
    }
    connection.execute(_NOTE, values)


def forget(connection: Connection, *, keep_seconds: float) -> None:
    """Remove messages that are too old to be asked for, whatever became of them."""
    old = func.app_now() - func.make_interval(0, 0, 0, 0, 0, 0, keep_seconds)
    connection.execute(delete(webhook_deliveries).where(webhook_deliveries.c.created_at < old))
