"""Asks `workers.images.decoder` about images, in a few processes that are started when they are needed."""

import asyncio
import base64
import json
import struct
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from typing import Any

from jobs import telemetry
from jobs.settings import Images
from workers.images.values import Picture, Problem, too_many_bytes

log = telemetry.get_logger(__name__)

# A process that the system ended for want of memory says nothing about the image; the second one does.
# Longer than the decoder's own limit of processor time: one that waits is stuck.
WALL_SECONDS = 60
TRIES = 2


class Checker:
    """Up to `settings.processes` decoders."""

    def __init__(self, settings: Images) -> None:
        self._settings = settings
        self._free = asyncio.Semaphore(settings.processes)
        self._started: set[Process] = set()
        self._idle: list[Process] = []
        self._problems = {
            "unsupported_image_media_type": "it is neither PNG, JPEG, WEBP nor GIF",
            "image_too_large": f"the image has more than {settings.max_pixels:,} pixels",
            "image_parse_error": "the image is broken or incomplete",
        }

    async def check(self, data: bytes) -> Picture | Problem:
        """Return the image as an engine may have it, or what is wrong with it."""
        if not data:
            return Problem("empty_image_file", "the image is empty")
        if len(data) > self._settings.max_bytes:
            return too_many_bytes(self._settings.max_bytes)
        async with self._free:
            for _ in range(TRIES):
                process = self._idle.pop() if self._idle else await self._start()
                try:
                    async with asyncio.timeout(WALL_SECONDS):
                        head, drawn = await _ask(process, data)
                except (asyncio.IncompleteReadError, ConnectionError, TimeoutError, ValueError):
                    await self._bury(process)
                else:
                    self._idle.append(process)
                    return await self._made_of(head, drawn or data)
        return Problem("image_parse_error", "the image takes more time or memory than it may", size=0)

    async def _made_of(self, head: dict[str, Any], data: bytes) -> Picture | Problem:
        if problem := head.get("problem"):
            return Problem(problem, self._problems[problem])
        if len(data) > self._settings.max_bytes:
            return too_many_bytes(self._settings.max_bytes)
        text = (await asyncio.to_thread(base64.b64encode, data)).decode()
        return Picture(f"data:image/{head['format']};base64,{text}")

    async def _start(self) -> Process:
        limits = (str(self._settings.max_pixels), str(self._settings.max_bytes))
        command = [sys.executable, "-I", "-m", "workers.images.decoder", *limits]
        # Without our environment, which has passwords in it.
        process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, env={})
        self._started.add(process)
        return process

    async def _bury(self, process: Process) -> None:
        if process.returncode is None:
            process.kill()
        log.warning("image_decoder_died", status=await process.wait())
        self._started.discard(process)

    async def close(self) -> None:
        """End the processes."""
        for process in self._started:
            if process.returncode is None:
                process.kill()
        await asyncio.gather(*(process.communicate() for process in self._started))
        self._started.clear()
        self._idle.clear()


async def _ask(process: Process, data: bytes) -> tuple[dict[str, Any], bytes]:
    assert process.stdin
    assert process.stdout
    process.stdin.write(struct.pack(">Q", len(data)))
    process.stdin.write(data)
    await process.stdin.drain()
    (length,) = struct.unpack(">I", await process.stdout.readexactly(4))
    head = json.loads(await process.stdout.readexactly(length))
    return head, await process.stdout.readexactly(head.get("size", 0))
