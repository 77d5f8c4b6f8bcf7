"""Images that are named by a URL: off by default, from listed hosts only, over a network that checks each address."""

import asyncio

import httpcore2
import httpx2

from jobs import addresses
from jobs.errors import InvalidRequest
from jobs.settings import Images
from workers import network
from workers.images.values import Problem, too_many_bytes

HEADERS = {"accept": "image/png, image/jpeg, image/webp, image/gif", "user-agent": "promptmill"}
# Together from all hosts.
CONNECTIONS = 8


class Remote:
    """Fetches. Nothing is opened before the first fetch."""

    def __init__(self, settings: Images) -> None:
        self._settings = settings
        self._pool: httpcore2.AsyncConnectionPool | None = None
        self._turns = asyncio.Semaphore(CONNECTIONS)

    def refusal(self, url: str) -> Problem | None:
        """Return why `url` is not fetched, without asking anybody."""
        if not self._settings.allow_remote:
            return Problem("invalid_image_url", "remote images are off (PROMPTMILL_IMAGES__ALLOW_REMOTE)")
        try:
            addresses.check_url(url, self._settings)
        except InvalidRequest as error:
            return Problem("invalid_image_url", error.message.removeprefix("Invalid 'url': ").removesuffix("."))
        # By the parser whose host is connected to.
        if httpx2.URL(url).host not in {host.lower() for host in self._settings.allowed_hosts}:
            return Problem("invalid_image_url", "its host is not allowed (PROMPTMILL_IMAGES__ALLOWED_HOSTS)")
        return None

    async def fetch(self, url: str) -> bytes | Problem:
        """Return what is there, up to `max_bytes`. Redirects are not followed.

        An address that is refused and a host that does not answer look alike: which of them this network knows is
        nobody's business.
        """
        if refusal := self.refusal(url):
            return refusal
        try:
            # Waiting for a turn is no fault of the host's.
            async with self._turns, asyncio.timeout(self._settings.timeout_seconds):
                return await self._read(url)
        except Exception:  # noqa: BLE001  whatever a stranger's server, or the way to it, does
            return _not_fetched()

    async def _read(self, url: str) -> bytes | Problem:
        self._pool = self._pool or network.make_pool(self._settings, connections=CONNECTIONS)
        parts, size = [], 0
        async with self._pool.stream("GET", network.target(url), headers=list(HEADERS.items())) as response:
            if response.status != 200:
                return _not_fetched()
            async for part in response.aiter_stream():
                parts.append(part)
                size += len(part)
                if size > self._settings.max_bytes:
                    return too_many_bytes(self._settings.max_bytes)
        return b"".join(parts)

    async def close(self) -> None:
        if self._pool:
            await self._pool.aclose()


def _not_fetched() -> Problem:
    return Problem("failed_to_download_image", "the image could not be fetched", size=0)
