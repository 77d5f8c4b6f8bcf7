"""Turns the images of a chat body into checked `data:` URLs.

What many rows of a batch name is read, decoded and checked once in each worker: an image is known by the SHA-256 of its
bytes, whichever way they came. What is kept of one project's images serves no other project.
"""

import asyncio
import base64
import binascii
import hashlib
import re
import time
from collections.abc import Awaitable, Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from sqlalchemy import Engine as Database

from jobs.errors import RequestRejected, Unavailable
from jobs.settings import Images
from workers.engines.base import Body
from workers.images import references, stored
from workers.images.checking import Checker
from workers.images.references import Place, Reference
from workers.images.remote import Remote
from workers.images.sharing import Shared
from workers.images.values import Picture, Problem, Stored, not_found, too_many_bytes

Result = TypeVar("Result")

# Threads, and connections to Postgres, that look-ups may take.
READERS = 4
# A file that was deleted, and an address whose image changed, are noticed after this time at the latest.
REMEMBERED_SECONDS = 60
UNAVAILABLE_SECONDS = 1.0
# `data:image/png;base64,`; what it is said to be is not heeded.
_DATA_URL = re.compile(r"data:[\w.+/-]{0,100};base64,", re.IGNORECASE)


class Resolver:
    """One for a worker, on its event loop. Nothing is started before the first image."""

    def __init__(self, settings: Images, database: Database) -> None:
        self._settings, self._database = settings, database
        self._threads = ThreadPoolExecutor(READERS, thread_name_prefix="images")
        self._known: Shared[Picture | Problem | Stored] = Shared(settings.cache_bytes)
        self._checker = Checker(settings)
        self._remote = Remote(settings)

    async def resolve(self, body: Body, places: Sequence[Place], tenant: str) -> Body:
        """Return the body with each image as a `data:` URL, PNG or JPEG, that was decoded to its end.

        Args:
            body: a chat body.
            places: `references.find(body)`.
            tenant: the project whose files may be named.

        Raises:
            RequestRejected: there are too many images, or one cannot be used; `param` says which.
        """
        if len(places) > self._settings.max_per_request:
            message = f"A request has at most {self._settings.max_per_request} images."
            raise RequestRejected(message, code="invalid_value", param="messages")
        given = [(place, place.reference()) for place in places]
        urls = [(place, reference, await self._url(place, reference, tenant)) for place, reference in given]
        return references.replaced(body, urls)

    async def _url(self, place: Place, reference: Reference, tenant: str) -> str:
        found = await self._find(reference, tenant)
        if isinstance(found, Problem):
            field = ".image_url.file_id" if reference.url is None else ".image_url.url"
            raise place.refused(found.words, found.code, field)
        return found.url

    async def _find(self, reference: Reference, tenant: str) -> Picture | Problem:
        if reference.file_id is not None:
            return await self._of_file(reference.file_id, tenant)
        url = reference.url or ""
        if url[:5].lower() == "data:":
            return await self._of_data(url, tenant)
        # Before anything is remembered by it: an address may be as long as a line.
        if refusal := self._remote.refusal(url):
            return refusal
        return await self._picture((tenant, url, _moment()), partial(self._fetch_and_check, url, tenant))

    async def _of_file(self, file_id: str, tenant: str) -> Picture | Problem:
        look_up = partial(stored.look_up, self._database, tenant, file_id, self._settings.max_bytes)
        known = await self._known.get((tenant, file_id, _moment()), partial(self._ask_postgres, look_up))
        if not isinstance(known, Stored):
            return known
        return await self._picture((tenant, known.sha256), partial(self._read_and_check, known))

    async def _read_and_check(self, known: Stored) -> Picture | Problem:
        data = await self._ask_postgres(partial(stored.read, self._database, known))
        return not_found(known.file_id) if data is None else await self._checker.check(data)

    async def _of_data(self, url: str, tenant: str) -> Picture | Problem:
        if not (head := _DATA_URL.match(url)):
            return Problem("invalid_image_url", "a data: URL of an image is base64")
        if 3 * (len(url) - head.end()) // 4 > self._settings.max_bytes + 3:
            return too_many_bytes(self._settings.max_bytes)
        try:
            data, digest = await self._in_thread(partial(_decoded, url, head.end()))
        except (binascii.Error, ValueError):
            return Problem("invalid_base64_image", "the image is not valid base64")
        return await self._picture((tenant, digest), partial(self._checker.check, data))

    async def _fetch_and_check(self, url: str, tenant: str) -> Picture | Problem:
        data = await self._remote.fetch(url)
        if isinstance(data, Problem):
            return data
        return await self._picture((tenant, hashlib.sha256(data).digest()), partial(self._checker.check, data))

    async def _picture(self, key: Hashable, make: Callable[[], Awaitable[Picture | Problem]]) -> Picture | Problem:
        found = await self._known.get(key, make)
        assert not isinstance(found, Stored), "other keys are for them"
        return found

    async def _ask_postgres(self, work: Callable[[], Result]) -> Result:
        """Wait while Postgres is away: without it no outcome could be written either."""
        while True:
            try:
                return await self._in_thread(work)
            except Unavailable:
                await asyncio.sleep(UNAVAILABLE_SECONDS)

    async def _in_thread(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def close(self) -> None:
        """End everything that was started."""
        await self._known.close()
        await self._checker.close()
        await self._remote.close()
        self._threads.shutdown(wait=False, cancel_futures=True)


def _decoded(url: str, start: int) -> tuple[bytes, bytes]:
    data = base64.b64decode(url[start:], validate=True)
    return data, hashlib.sha256(data).digest()


def _moment() -> int:
    return int(time.monotonic() // REMEMBERED_SECONDS)
