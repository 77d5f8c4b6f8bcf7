"""F57: two hundred clients that send a byte now and then. They are hung up on, and keep nobody else out."""

import selectors
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import psutil
import wire
from payloads import numbered

CLIENTS = 200


class Drip(threading.Thread):
    """Sends one byte a second on every connection, until each has an answer."""

    def __init__(self, connections: list[socket.socket]) -> None:
        super().__init__()
        self.statuses: list[int] = []
        self._waiting = set(connections)
        self._over = threading.Event()

    def run(self) -> None:
        with selectors.DefaultSelector() as answered:
            for opened in self._waiting:
                answered.register(opened, selectors.EVENT_READ)
            while self._waiting and not self._over.is_set():
                for ready, _ in answered.select(timeout=0):
                    answered.unregister(ready.fileobj)
                    self._note(ready.fileobj)
                for opened in self._waiting:
                    opened.send(b"x")
                self._over.wait(1)

    def _note(self, opened: Any) -> None:
        self._waiting.discard(opened)
        self.statuses.append(wire.status(opened))
        assert wire.is_closed(opened)

    def stop(self) -> None:
        self._over.set()
        self.join()


def test_slow_uploads_keep_nobody_out(start: Callable[..., Any]) -> None:
    server = start(PROMPTMILL_API__BODY_GRACE_SECONDS="8")
    user = server.user()
    begin = wire.head("/v1/files", server.key, "Content-Length: 1000000") + wire.form(b"{}")[:150]
    with ExitStack() as opened:
        connections = [opened.enter_context(wire.connection(server.port, 60)) for _ in range(CLIENTS)]
        for connection in connections:
            connection.sendall(begin)
        drip = Drip(connections)
        opened.callback(drip.stop)
        drip.start()
        file = user.sdk.files.create(file=("a.jsonl", numbered(1_000)), purpose="batch")
        assert user.sdk.files.content(file.id).content == numbered(1_000)
        assert len(drip.statuses) < CLIENTS, "others were served while they dripped"
        assert not server.busy(), "they hold no transaction"
        assert psutil.Process(server.pid).num_threads() < CLIENTS / 2, "and no thread each"
        drip.join(60)
    assert drip.statuses == [408] * CLIENTS
    assert len(server.rows("SELECT FROM files")) == 1


def test_a_slow_body_of_another_call_is_hung_up_on_too(start: Callable[..., Any]) -> None:
    """It is read before the key is looked at."""
    server = start(PROMPTMILL_API__BODY_GRACE_SECONDS="1")
    with wire.connection(server.port) as opened:
        head = wire.head("/v1/batches", None, "Content-Length: 100", "Content-Type: application/json")
        opened.sendall(head + b'{"a"')
        assert wire.status(opened) == 408
        assert wire.is_closed(opened)


def test_a_fast_beginning_buys_no_long_silence(start: Callable[..., Any]) -> None:
    server = start(PROMPTMILL_API__BODY_GRACE_SECONDS="2", PROMPTMILL_API__MIN_BODY_BYTES_PER_SECOND="10")
    with wire.connection(server.port) as opened:
        began = time.monotonic()
        opened.sendall(
            wire.head("/v1/files", server.key, "Content-Length: 1000000") + wire.form(b"x" * 60_000)[:50_000]
        )
        assert wire.status(opened) == 408, f"not after {time.monotonic() - began:.0f} seconds"


def test_a_steady_client_may_take_its_time(start: Callable[..., Any]) -> None:
    """Longer than the grace in all, faster than the least."""
    server = start(PROMPTMILL_API__BODY_GRACE_SECONDS="2", PROMPTMILL_API__MIN_BODY_BYTES_PER_SECOND="100")
    body = wire.form(numbered(10))
    with wire.connection(server.port) as opened:
        opened.sendall(wire.head("/v1/files", server.key, f"Content-Length: {len(body)}"))
        for place in range(0, len(body), 150):
            opened.sendall(body[place : place + 150])
            time.sleep(0.25)
        assert len(body) / 150 * 0.25 > 2
        assert wire.status(opened) == 200
