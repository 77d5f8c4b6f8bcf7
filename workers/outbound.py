"""Posts one message to a receiver, through a network that connects to allowed addresses only."""

import asyncio
import ssl
from collections.abc import Iterable

import httpcore2

from jobs import addresses
from jobs.errors import InvalidRequest
from jobs.outbox import Answer, Delivery
from jobs.settings import Webhooks
from workers import network
from workers.network import AddressRefused

HEADERS = {"content-type": "application/json", "user-agent": "promptmill"}

# What a project may learn of an attempt that got no answer; the first that fits counts. An address that is refused
# and a name that does not exist look alike: which names this network knows is nobody's business.
_REASONS: list[tuple[type[BaseException], str]] = [
    (AddressRefused, "address_not_allowed"),
    (InvalidRequest, "address_not_allowed"),
    (TimeoutError, "timeout"),
    (httpcore2.TimeoutException, "timeout"),
    (ssl.SSLError, "tls_failed"),
    (httpcore2.NetworkError, "no_connection"),
    (httpcore2.ProtocolError, "invalid_answer"),
]


async def post(pool: httpcore2.AsyncConnectionPool, delivery: Delivery, settings: Webhooks) -> Answer:
    """Send the message; return the status of the answer, or why there is none. Redirects are not followed.

    Of the answer only the head is read: its body may be endless, and nobody asks for it.
    """
    if delivery.headers is None:
        return Answer(error="secret_not_readable")
    headers, body = list({**HEADERS, **delivery.headers}.items()), delivery.event.body()
    try:
        # Once more: settings may have become stricter since it was registered.
        addresses.check_url(delivery.url, settings)
        async with (
            asyncio.timeout(settings.timeout_seconds),
            pool.stream("POST", network.target(delivery.url), headers=headers, content=body) as response,
        ):
            return Answer(response.status, retry_after_seconds=_retry_after(response.headers))
    except Exception as error:  # noqa: BLE001  whatever a stranger's server, or the way to it, does
        return Answer(error=_reason(error))


def _retry_after(headers: Iterable[tuple[bytes, bytes]]) -> float:
    """Return the seconds that `Retry-After` asks for; 0 without one, and for a date, which few servers send."""
    asked = next((value for name, value in headers if name.lower() == b"retry-after"), b"")
    return float(asked) if asked.isdigit() else 0


def _reason(error: Exception) -> str:
    # httpcore2 raises its own error while it handles the TLS library's.
    for kind, reason in _REASONS:
        if isinstance(error, kind) or isinstance(error.__context__, kind):
            return reason
    return "failed"
