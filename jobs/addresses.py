"""Where webhooks may go, and where images may come from.

Whoever has an API key names the URL, and this network must not be reached through us.

A URL is looked at when it is registered, so that a mistake is seen at once. What protects is the second look:
`workers.network` checks each address that a name resolves to, and connects to the very address it checked. No parser of
names or numbers stands in between, and a name that resolves to something else a moment later gains nothing.
"""

import ipaddress
import socket
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Protocol

import httpx2

from jobs.errors import InvalidRequest

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


class Rules(Protocol):
    """What settings say of it: `Webhooks` and `Images`."""

    @property
    def allow_http(self) -> bool:
        """Whether TLS may be missing."""

    @property
    def allowed_networks(self) -> tuple[Network, ...]:
        """Networks that are not public and may be reached all the same."""

    @property
    def timeout_seconds(self) -> float:
        """Longest time of one call, seconds."""


MAX_URL_CHARS = 2_048
WEB_PORTS = (80, 443)
UNPRIVILEGED_PORTS = range(1_024, 65_536)
# The only block of IPv6 that is routed publicly (RFC 4291, IANA).
_GLOBAL_UNICAST = IPv6Network("2000::/3")
# An IPv4 address on its way through a network that has IPv6 only (RFC 6052).
_NAT64 = IPv6Network("64:ff9b::/96")
# Public by their numbers, as far as every Python knows: what hands out a machine's configuration (Azure, Oracle), and
# relays of old (RFC 5736, 7526).
_SPECIAL = tuple(IPv4Network(each) for each in ("168.63.129.16/32", "192.0.0.0/24", "192.88.99.0/24"))
_DOCUMENTATION = IPv6Network("3fff::/20")


def check_url(url: str, settings: Rules) -> None:
    """Do nothing if `url` may be asked, as far as that can be told without looking up its name.

    Raises:
        InvalidRequest: what is wrong with it; `param` is `url`.
    """
    for problem in _problems(url, settings):
        message = f"Invalid 'url': {problem}."
        raise InvalidRequest(message, param="url", code="invalid_value")


def _problems(url: str, settings: Rules) -> Iterator[str]:
    if len(url) > MAX_URL_CHARS or not url.isascii() or not url.isprintable() or set(url) & set(" \\"):
        yield f"it has at most {MAX_URL_CHARS} ASCII characters, and neither spaces nor backslashes"
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL:
        yield "it is not a URL"
        return
    if parsed.scheme != "https" and not (parsed.scheme == "http" and settings.allow_http):
        yield "it must begin with https://"
    if parsed.userinfo or parsed.fragment or not parsed.host:
        yield "it needs a host, and can have neither a user nor a fragment"
    if parsed.port is not None and parsed.port not in WEB_PORTS and parsed.port not in UNPRIVILEGED_PORTS:
        # Behind them are servers that take a request for commands of their own: mail, for one.
        yield f"its port must be 80, 443, or {UNPRIVILEGED_PORTS.start} and above"
    if not all(is_allowed(address, settings) for address in _literal(parsed.host)):
        yield "its address is not a public one"


def _literal(host: str) -> list[Address]:
    """Return the address that `host` spells, in any of the ways that the system would take for one; no look-up."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        return []
    return [ipaddress.ip_address(str(entry[4][0])) for entry in found]


def is_allowed(address: Address, settings: Rules) -> bool:
    """Tell whether this address may be connected to."""
    real = _unwrapped(address)
    return any(real in network for network in settings.allowed_networks) or _is_public(real)


def _unwrapped(address: Address) -> Address:
    """Return the IPv4 address that an IPv6 address stands for, if it does."""
    if isinstance(address, IPv4Address):
        return address
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address.sixtofour or address


def _is_public(address: Address) -> bool:
    if isinstance(address, IPv6Address):
        return address in _GLOBAL_UNICAST and address.is_global and address not in _DOCUMENTATION
    return address.is_global and not address.is_multicast and not any(address in network for network in _SPECIAL)
