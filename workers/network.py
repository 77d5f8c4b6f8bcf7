"""Connections to addresses that strangers name: each one is checked, and connected to is the very one that was checked.

Whatever a URL says, and whatever its name resolves to, what counts is the address that a socket is opened to. So the
check is made there, below HTTP and TLS: the Host header and the certificate are still those of the name.
"""

import asyncio
import contextlib
import ipaddress
import socket
from typing import Any

import httpcore2
import httpx2

from jobs import addresses
from jobs.addresses import Rules


class AddressRefused(httpcore2.ConnectError):
    """The name resolves to nothing, or to an address that may not be connected to."""


class CheckedNetwork(httpcore2.AnyIOBackend):
    """Opens connections to allowed addresses only."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules

    async def connect_tcp(self, host: str, port: int, **options: Any) -> httpcore2.AsyncNetworkStream:  # type: ignore[override]  # noqa: ANN401  passed on
        """Connect to the first address of `host` that answers.

        Raises:
            AddressRefused: one of its addresses is not allowed. None is connected to then: a name with a good and a bad
                one is an attempt to slip through.
            httpcore2.ConnectError: nobody answers.
            httpcore2.ConnectTimeout: nobody answers in time.
        """
        found = await _resolve(host, port)
        if not all(addresses.is_allowed(ipaddress.ip_address(each), self._rules) for each in found):
            raise AddressRefused
        # So that there is time for the others after one that says nothing.
        options["timeout"] = self._rules.timeout_seconds / len(found)
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


def make_pool(rules: Rules, *, connections: int) -> httpcore2.AsyncConnectionPool:
    """Return what calls go through. No connection is used twice, so that each call looks its name up again."""
    return httpcore2.AsyncConnectionPool(
        ssl_context=httpx2.create_ssl_context(),
        max_connections=connections,
        max_keepalive_connections=0,
        network_backend=CheckedNetwork(rules),
    )


def target(url: str) -> httpcore2.URL:
    """Return `url` as the pool takes it, read by the parser that checked it. Redirects are not followed by the pool."""
    parsed = httpx2.URL(url)
    return httpcore2.URL(scheme=parsed.raw_scheme, host=parsed.raw_host, port=parsed.port, target=parsed.raw_path)
