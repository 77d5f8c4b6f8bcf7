"""Posts one message to a receiver, through a network that checks each address and connects to the very one it checked.

Whatever a URL says, and whatever its name resolves to, what counts is the address that a socket is opened to. So the
check is made there, below HTTP and TLS: the Host header and the certificate are still those of the name.
"""

import asyncio
import contextlib
import ipaddress
import socket
import ssl
from collections.abc import Iterable
from typing import Any

import httpcore2
import httpx2

from jobs import addresses
from jobs.errors import InvalidRequest
from jobs.outbox import Answer, Delivery
from jobs.settings import Webhooks

HEADERS = {"content-type": "application/json", "user-agent": "promptmill"}


class AddressRefused(httpcore2.ConnectError):
    """The name resolves to nothing, or to an address that may not be connected to."""


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


class CheckedNetwork(httpcore2.AnyIOBackend):
    """Opens connections to allowed addresses only."""

    def __init__(self, settings: Webhooks) -> None:
        self._settings = settings

    async def connect_tcp(self, host: str, port: int, **options: Any) -> httpcore2.AsyncNetworkStream:  # type: ignore[override]  # noqa: ANN401  passed on
        """Connect to the first address of `host` that answers.

        Raises:
            AddressRefused: one of its addresses is not allowed. None is connected to then: a name with a good and a bad
                one is an attempt to slip through.
            httpcore2.ConnectError: nobody answers.
            httpcore2.ConnectTimeout: nobody answers in time.
        """
        found = await _resolve(host, port)
        if not all(addresses.is_allowed(ipaddress.ip_address(each), self._settings) for each in found):
            raise AddressRefused
        # So that there is time for the others after one that says nothing.
        options["timeout"] = self._settings.timeout_seconds / len(found)
        for address in found[:-1]:
            with contextlib.suppress(httpcore2.ConnectError, httpcore2.ConnectTimeout):
                return await super().connect_tcp(address, port, **options)
        return await super().connect_tcp(found[-1], port, **options)


async def _resolve(host: str, port: int) -> list[str]:
    """Return the addresses of `host`, best first; there is at least one.

    Raises:
        AddressRefused: it has none.
    """
    try:
        entries = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise AddressRefused from None
    return list(dict.fromkeys(str(entry[4][0]) for entry in entries))


def make_pool(settings: Webhooks) -> httpcore2.AsyncConnectionPool:
    """Return what `post` sends through. No connection is used twice, so that each attempt looks its name up again."""
    return httpcore2.AsyncConnectionPool(
        ssl_context=httpx2.create_ssl_context(),
        max_connections=settings.max_at_once,
        max_keepalive_connections=0,
        network_backend=CheckedNetwork(settings),
    )


async def post(pool: httpcore2.AsyncConnectionPool, delivery: Delivery, settings: Webhooks) -> Answer:
    """Send the message; return the status of the answer, or why there is none. Redirects are not followed.

    Of the answer only the head is read: its body may be endless, and nobody asks for it.
    """
    headers = list({**HEADERS, **delivery.headers}.items())
    try:
        # Once more: settings may have become stricter since it was registered.
        addresses.check_url(delivery.url, settings)
        async with (
            asyncio.timeout(settings.timeout_seconds),
            pool.stream("POST", _target(delivery.url), headers=headers, content=delivery.event.body()) as response,
        ):
            return Answer(response.status, retry_after_seconds=_retry_after(response.headers))
    except Exception as error:  # noqa: BLE001  whatever a stranger's server, or the way to it, does
        return Answer(error=_reason(error))


def _target(url: str) -> httpcore2.URL:
    # Read by the parser that checked it.
    parsed = httpx2.URL(url)
    return httpcore2.URL(scheme=parsed.raw_scheme, host=parsed.raw_host, port=parsed.port, target=parsed.raw_path)


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
