"""A proxy between one of our processes and a server, whose line can be made bad, and good again, while it runs.

The toxics are those of toxiproxy. Once a link has lost a byte it stays silent for good, as TCP has it: nothing comes
after a gap.
"""

import asyncio
import socket
import struct
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

Result = TypeVar("Result")

CHUNK_BYTES = 65_536
COMMIT = b"COMMIT\x00"
# Close with a reset, not with a FIN: socket(7), SO_LINGER.
RESET = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Toxic:
    """What is wrong with a line."""

    latency_seconds: float = 0
    """Each chunk comes so much later."""
    piece_bytes: int = CHUNK_BYTES
    """Chunks are cut into pieces of this size, each with the latency."""
    is_down: bool = False
    """Links are reset, and new ones are too."""
    resets: bool = False
    """Links are reset as soon as something comes; new ones are taken, and fare the same."""
    is_silent: bool = False
    """Half-open: links stay, and nothing comes through."""
    close_seconds: float = 0
    """The end of a link is passed on so much later."""


GOOD = Toxic()
TOXICS = {
    "latency": Toxic(latency_seconds=0.05),
    "slow": Toxic(latency_seconds=0.01, piece_bytes=512),
    "sliced": Toxic(piece_bytes=7),
    "cut": Toxic(is_down=True),
    "reset": Toxic(resets=True),
    "half-open": Toxic(is_silent=True),
    "slow to close": Toxic(close_seconds=1),
}


@dataclass(eq=False)
class _Link:
    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    asked: bytearray = field(default_factory=bytearray)
    """What the client sent since its last COMMIT."""
    is_silent: bool = False
    is_committing: bool = False
    """Its COMMIT is on its way; the answer is not to be heard."""

    def reset(self) -> None:
        for writer in (self.client, self.server):
            _reset(writer)


def _reset(writer: asyncio.StreamWriter) -> None:
    if not writer.transport.is_closing():
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        writer.transport.abort()


class Proxy:
    """Passes on to the server of `upstream`; `url` is the way through it. `harmed` counts what the toxic did."""

    def __init__(self, upstream: str) -> None:
        parts = urlsplit(upstream)
        self._upstream = parts.hostname, parts.port
        self._toxic, self._marker = GOOD, b""
        self._links: set[_Link] = set()
        self.harmed = self.commits_cut = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy")
        self._thread.start()
        self._server = self._run(asyncio.start_server(self._serve, "127.0.0.1", 0))
        port = self._server.sockets[0].getsockname()[1]
        user = parts.netloc.rpartition("@")[0]
        self.url = urlunsplit(parts._replace(netloc=f"{user}@127.0.0.1:{port}"))

    def _run(self, work: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def poison(self, toxic: Toxic) -> None:
        """Make the line bad, or `GOOD` again; count its harm from zero."""
        self._toxic, self.harmed = toxic, 0
        if toxic.is_down:
            self.reset()

    def reset(self) -> None:
        """Reset every link."""
        self._run(self._reset())

    async def _reset(self) -> None:
        for link in tuple(self._links):
            self.harmed += 1
            link.reset()

    def cut_commit(self, marker: bytes) -> None:
        """Cut the link of the next transaction that sends `marker`, after its COMMIT was answered and before that is heard."""
        self._marker, self.commits_cut = marker, 0

    def close(self) -> None:
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        self._server.close()
        await self._reset()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.wait(others, timeout=10) if others else None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._toxic.is_down:
            self.harmed += 1
            _reset(writer)
            return
        try:
            their_reader, their_writer = await asyncio.open_connection(*self._upstream)
        except OSError:
            writer.transport.abort()
            return
        link = _Link(writer, their_writer)
        self._links.add(link)
        ways = [
            asyncio.create_task(self._pass_on(link, reader, their_writer)),
            asyncio.create_task(self._pass_on(link, their_reader, writer)),
        ]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.sleep(self._toxic.close_seconds)
        self.harmed += bool(self._toxic.close_seconds)
        self._links.discard(link)
        for end in (writer, their_writer):
            end.close()
        for way in ways:
            way.cancel()
        await asyncio.wait(ways)

    async def _pass_on(self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(CHUNK_BYTES):
                if self._is_harmed(link):
                    continue
                if writer is link.client and link.is_committing:
                    self.commits_cut += 1
                    link.reset()
                    return
                if writer is link.server:
                    self._look_for_commit(link, data)
                await self._send(writer, data)
        except OSError:
            return

    def _is_harmed(self, link: _Link) -> bool:
        """Do to a link what needs no data; tell whether the data is lost."""
        toxic = self._toxic
        self.harmed += toxic is not GOOD and not toxic.close_seconds
        if toxic.is_down or toxic.resets:
            link.reset()
        link.is_silent = link.is_silent or toxic.is_silent or toxic.is_down or toxic.resets
        return link.is_silent

    def _look_for_commit(self, link: _Link, data: bytes) -> None:
        link.asked += data
        if COMMIT not in data:
            return
        if self._marker and self._marker in link.asked:
            self._marker, link.is_committing = b"", True
        link.asked.clear()

    async def _send(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        toxic = self._toxic
        for start in range(0, len(data), toxic.piece_bytes):
            if toxic.latency_seconds:
                await asyncio.sleep(toxic.latency_seconds)
            writer.write(data[start : start + toxic.piece_bytes])
            await writer.drain()


@contextmanager
def serving(upstream: str) -> Iterator[Proxy]:
    """Run a proxy until the end of the block."""
    proxy = Proxy(upstream)
    try:
        yield proxy
    finally:
        proxy.close()
