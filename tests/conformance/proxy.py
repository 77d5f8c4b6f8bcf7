"""A proxy on the way to the server: it counts calls, and may lose or change answers. Nothing of it depends on the SDK."""

import http.client
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

# They are about one connection, not about the message.
HOP_BY_HOP = {"connection", "content-length", "host", "keep-alive", "transfer-encoding"}


@dataclass(frozen=True)
class Answer:
    """What the server says to one call."""

    status: int
    headers: list[tuple[str, str]]
    content: bytes


# `(call, answer)`, with `POST /v1/batches?limit=1` as the call; returns what the client gets, None if it gets nothing.
Treat = Callable[[str, Answer], Answer | None]


class LosesTheFirst:
    """Loses the answer to the first POST to a path."""

    def __init__(self, path: str) -> None:
        self._path, self.lost = path, False

    def __call__(self, call: str, answer: Answer) -> Answer | None:
        if self.lost or not (call.startswith("POST") and call.endswith(self._path)):
            return answer
        self.lost = True
        return None


class Proxy(ThreadingHTTPServer):
    """Passes calls on to a server, and treats the answers."""

    daemon_threads = True

    def __init__(self, base_url: str, treat: Treat) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self._upstream = urlsplit(base_url)
        self.treat = treat
        self.base_url = f"http://127.0.0.1:{self.server_port}{self._upstream.path}"
        self.calls: list[str] = []

    def ask(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> Answer:
        kind = http.client.HTTPSConnection if self._upstream.scheme == "https" else http.client.HTTPConnection
        upstream = kind(self._upstream.netloc, timeout=120)
        try:
            upstream.request(method, path, body, headers)
            answer = upstream.getresponse()
            return Answer(answer.status, _end_to_end(answer.getheaders()), answer.read())
        finally:
            upstream.close()


def _end_to_end(headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(name, value) for name, value in headers if name.lower() not in HOP_BY_HOP]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        call = f"{self.command} {self.path}"
        self.server.calls.append(call)
        answer = self.server.ask(self.command, self.path, body, dict(_end_to_end(self.headers.items())))
        treated = self.server.treat(call, answer)
        if treated:
            self._answer(treated)
        else:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    def _answer(self, answer: Answer) -> None:
        self.send_response_only(answer.status)
        for name, value in answer.headers:
            self.send_header(name, value)
        self.send_header("content-length", str(len(answer.content)))
        self.end_headers()
        self.wfile.write(answer.content)

    do_GET = do_POST = do_DELETE = _pass_on  # noqa: N815  the names are the base class's

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the name is the base class's
        pass


@contextmanager
def serving(base_url: str, treat: Treat = lambda _, answer: answer) -> Iterator[Proxy]:
    """Run a proxy until the end of the block."""
    proxy = Proxy(base_url, treat)
    thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        thread.join()
        proxy.server_close()
