"""The port on which a process shows its figures. It is not the API's: keys of clients open nothing here."""

import hmac
import socket
import threading
from collections.abc import Callable, Iterable
from importlib.metadata import version
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import make_wsgi_app

from jobs.errors import ConfigurationError
from jobs.metrics import BUILD, REGISTRY
from jobs.settings import Metrics

PATH = "/metrics"
# Whoever connects and says nothing keeps a thread no longer.
SILENCE_SECONDS = 10

Environment = dict[str, Any]
App = Callable[[Environment, Any], Iterable[bytes]]


def serve(process: str, settings: Metrics, port: int | None) -> None:
    """Show the figures of this process at `/metrics` from now on; without a port, nowhere.

    Raises:
        ConfigurationError: the port is taken.
    """
    BUILD.info({"version": version("promptmill"), "process": process})
    if port is None:
        return
    token = settings.token.get_secret_value() if settings.token else None
    try:
        server = _listen(settings.host, port, guarded(make_wsgi_app(REGISTRY), token))
    except OSError as error:
        message = (
            f"No figures on port {port} of {settings.host}: {error.strerror}. PROMPTMILL_METRICS__... names ports."
        )
        raise ConfigurationError(message) from error
    threading.Thread(target=server.serve_forever, name="figures", daemon=True).start()


def _listen(host: str, port: int, app: App) -> WSGIServer:
    class Server(ThreadingMixIn, WSGIServer):
        daemon_threads = True
        address_family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]

    class Quiet(WSGIRequestHandler):
        timeout = SILENCE_SECONDS

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002, ANN401  the library's words
            """Write no line: it would have the path that was asked for."""

    return make_server(host, port, app, Server, Quiet)


def guarded(app: App, token: str | None) -> App:
    """Return `app` for whoever asks for `/metrics` and, if there is a token, knows it."""

    def ask(environment: Environment, start: Any) -> Iterable[bytes]:  # noqa: ANN401  WSGI
        if environment["PATH_INFO"] != PATH:
            return _refuse(start, "404 Not Found")
        given = environment.get("HTTP_AUTHORIZATION", "").encode("latin-1")
        if token is not None and not hmac.compare_digest(given, f"Bearer {token}".encode()):
            return _refuse(start, "401 Unauthorized", ("WWW-Authenticate", "Bearer"))
        return app(environment, start)

    return ask


def _refuse(start: Any, status: str, *headers: tuple[str, str]) -> Iterable[bytes]:  # noqa: ANN401  WSGI
    start(status, [("Content-Type", "text/plain"), *headers])
    return [f"{status}\n".encode()]
