"""A real HTTP server that messages are sent to. It says what it is told to, and keeps what it got."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

# What lets our processes send to it: it has no certificate, and an address that is not public.
REACHABLE = {
    "PROMPTMILL_WEBHOOKS__ALLOW_HTTP": "true",
    "PROMPTMILL_WEBHOOKS__ALLOWED_NETWORKS": '["127.0.0.0/8"]',
    "PROMPTMILL_WEBHOOKS__POLL_SECONDS": "0.1",
    "PROMPTMILL_WEBHOOKS__RETRY_SECONDS": "[0.1, 0.1, 0.1]",
}


@dataclass(frozen=True)
class Message:
    """What arrived."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]


Reply = Callable[[BaseHTTPRequestHandler], None]


def status(code: int, **headers: str) -> Reply:
    """Answer with a status and nothing more."""

    def reply(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("content-length", "0")
        handler.end_headers()

    return reply


@dataclass
class Receiver:
    """A server on a port of its own."""

    server: ThreadingHTTPServer
    replies: list[Reply] = field(default_factory=list)
    """What it says next, one after the other; 200 when there is nothing left."""
    messages: list[Message] = field(default_factory=list)
    connections: int = 0

    @property
    def url(self) -> str:
        host, port = self.server.server_address[:2]
        return f"http://{host!s}:{port}/hook"

    @property
    def port(self) -> int:
        return int(self.server.server_address[1])

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        length = int(handler.headers.get("content-length", 0))
        headers = {name.lower(): value for name, value in handler.headers.items()}
        self.messages.append(Message(handler.path, headers, handler.rfile.read(length)))
        reply = self.replies.pop(0) if self.replies else status(200)
        # The courier may not stay for all of it.
        with contextlib.suppress(ConnectionError):
            reply(handler)


class Names:
    """Answers for one name with one list of addresses after the other; the last one stays."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: list[str], host: str = "rebind.test") -> None:
        self._host, self._answers, self._system = host, list(answers), socket.getaddrinfo
        self.asked = 0
        monkeypatch.setattr(socket, "getaddrinfo", self)

    def __call__(self, host: Any, port: Any, *kinds: Any, **options: Any) -> Any:
        if host != self._host or options.get("flags") == socket.AI_NUMERICHOST:
            return self._system(host, port, *kinds, **options)
        self.asked += 1
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in answer]


@contextlib.contextmanager
def receiving(host: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            receiver.serve(self)

        do_GET = do_POST  # noqa: N815  as the base class calls it

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def process_request(self, *connection: Any) -> None:
            receiver.connections += 1
            super().process_request(*connection)

        def handle_error(self, *_: Any) -> None:
            """Broken connections are what some tests are about."""

    with Server((host, port), Handler) as server:
        receiver = Receiver(server)
        if tls:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield receiver
        finally:
            server.shutdown()
            thread.join()
