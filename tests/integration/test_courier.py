"""F115: the courier against real receivers: what it connects to, what it sends, how long it stays."""

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import services
import trustme
from openai import OpenAI
from pydantic import SecretStr
from receivers import Names, Receiver, receiving, status

from jobs import db, vault, webhooks
from jobs.protocol import WebhookEndpointCreate
from jobs.settings import Settings, Webhooks
from workers.courier import Courier

# Short pauses, and loopback is allowed: for tests of what is sent rather than of where it may go.
OPEN: dict[str, Any] = {
    "allow_http": True,
    "allowed_networks": ["127.0.0.1/32"],
    "poll_seconds": 0.05,
    "retry_seconds": [0.05, 0.05],
    "timeout_seconds": 5,
}


class Sender:
    """A project with one endpoint, and a courier that begins when everything is there."""

    def __init__(self, domain: Any, database_url: str) -> None:
        self.domain, self.database_url = domain, database_url

    def add(self, url: str) -> Any:
        # As if it had been registered when this was allowed.
        settings = Webhooks.model_validate(
            {"allow_http": True, "allowed_networks": ["0.0.0.0/0", "::/0"], "key_file": services.KEY_FILE}
        )
        with db.transaction(self.domain.engine) as connection:
            endpoint_id = webhooks.create(connection, self.domain.project_id, WebhookEndpointCreate(url=url), settings)
            return webhooks.find_with_secret(connection, self.domain.project_id, endpoint_id, settings)

    def end_batch(self) -> str:
        batch_id: str = self.domain.create("file-unknown")
        return batch_id

    def courier(self, **settings: Any) -> Courier:
        return Courier(Settings(database_url=SecretStr(self.database_url), webhooks={**OPEN, **settings}))

    def messages(self, endpoint_id: str) -> list[Any]:
        with db.transaction(self.domain.engine) as connection:
            return webhooks.list_deliveries(connection, self.domain.project_id, endpoint_id, after=None, limit=9)[0]

    def send(self, url: str, *, until: str = "", **settings: Any) -> Any:
        """End a batch and run a courier until its message has come to `until`, or to an end; return the message."""
        endpoint = self.add(url)
        self.end_batch()

        def is_there() -> bool:
            (message,) = self.messages(endpoint.id)
            return bool(message.status == until if until else message.status != "waiting")

        with self.courier(**settings):
            services.wait_until(is_there, "the message has come to its end", 30)
        return self.messages(endpoint.id)[0]


@pytest.fixture
def sender(domain: Any, database_url: str) -> Sender:
    return Sender(domain, database_url)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as made:
        yield made


def test_a_message_arrives_and_the_sdk_accepts_it(sender: Sender, receiver: Receiver) -> None:
    endpoint = sender.add(receiver.url + "?token=x")
    batch_id = sender.end_batch()
    with sender.courier():
        services.wait_until(lambda: receiver.messages, "the message arrives", 30)
    (message,) = receiver.messages
    with OpenAI(api_key="none") as client:
        event = client.webhooks.unwrap(message.body, message.headers, secret=endpoint.signing_secret)
    assert event.type == "batch.failed"
    assert event.data.id == batch_id
    assert event.id == message.id
    assert message.path == "/hook?token=x"
    assert message.headers["content-type"] == "application/json"
    assert message.headers["user-agent"] == "promptmill"
    assert message.headers["host"] == f"127.0.0.1:{receiver.port}"
    assert sender.messages(endpoint.id)[0].status == "delivered"


def test_what_was_not_accepted_is_sent_again_as_it_was(sender: Sender, receiver: Receiver) -> None:
    receiver.replies += [status(500), status(404)]
    assert sender.send(receiver.url).status == "delivered"
    assert len(receiver.messages) == 3
    assert len({(message.id, message.body) for message in receiver.messages}) == 1


def test_after_the_last_pause_it_is_given_up(sender: Sender, receiver: Receiver) -> None:
    receiver.replies += [status(500)] * 5
    message = sender.send(receiver.url)
    assert (message.status, message.attempts, message.last_status_code) == ("given_up", 3, 500)


def test_what_cannot_be_signed_is_not_sent(domain: Any, sender: Sender, receiver: Receiver, tmp_path: Path) -> None:
    key_file = tmp_path / "keys"
    key_file.write_text(vault.new_key())
    message = sender.send(receiver.url, key_file=key_file)
    assert (message.status, message.attempts, message.last_error) == ("given_up", 3, "secret_not_readable")
    assert receiver.connections == 0


def test_a_redirect_is_not_followed(sender: Sender, receiver: Receiver) -> None:
    with receiving() as elsewhere:
        receiver.replies += [status(302, location=elsewhere.url), status(307, location=elsewhere.url)]
        assert sender.send(receiver.url).attempts == 3
        assert (len(receiver.messages), elsewhere.connections) == (3, 0)


def test_an_endless_answer_is_not_read(sender: Sender, receiver: Receiver) -> None:
    sent: list[int] = []

    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        sent.extend(handler.wfile.write(b"x" * 100_000) for _ in range(10_000))

    receiver.replies.append(endless)
    message = sender.send(receiver.url)
    assert (message.status, message.attempts) == ("delivered", 1)
    assert len(sent) < 10_000


def test_a_receiver_that_does_not_answer_in_time_is_left(sender: Sender, receiver: Receiver) -> None:
    """Byte by byte, so that no single read takes long."""
    stop = threading.Event()

    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nx-slow: ")
        while not stop.is_set():
            handler.wfile.write(b"x")
            time.sleep(0.05)

    receiver.replies += [drip] * 3
    try:
        message = sender.send(receiver.url, timeout_seconds=0.5)
    finally:
        stop.set()
    assert (message.status, message.last_error, message.last_status_code) == ("given_up", "timeout", None)


def test_one_slow_receiver_holds_up_no_other(sender: Sender, receiver: Receiver) -> None:
    go_on = threading.Event()
    receiver.replies.append(lambda handler: status(200)(handler) if go_on.wait(60) else None)
    with receiving() as quick:
        slow_id, quick_id = sender.add(receiver.url).id, sender.add(quick.url).id
        for _ in range(3):
            sender.end_batch()
        with sender.courier(max_at_once=2, timeout_seconds=60):
            services.wait_until(lambda: len(quick.messages) == 3, "the quick one has all of its messages", 30)
            assert {message.status for message in sender.messages(slow_id)} == {"waiting"}
            go_on.set()
            services.wait_until(lambda: len(receiver.messages) == 3, "the slow one has its own", 30)
        for endpoint_id in (slow_id, quick_id):
            assert {message.status for message in sender.messages(endpoint_id)} == {"delivered"}


def test_two_couriers_send_each_message_once(sender: Sender, receiver: Receiver) -> None:
    endpoint_id = sender.add(receiver.url).id
    for _ in range(9):
        sender.end_batch()
    with sender.courier(), sender.courier():
        services.wait_until(
            lambda: {message.status for message in sender.messages(endpoint_id)} == {"delivered"}, "all arrive", 30
        )
    assert len({message.id for message in receiver.messages}) == len(receiver.messages) == 9


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "0x7f000001", "2130706433", "127.1", "0.0.0.0", "[::ffff:127.0.0.1]"]
)
def test_no_connection_is_made_to_an_internal_address(sender: Sender, receiver: Receiver, host: str) -> None:
    message = sender.send(f"http://{host}:{receiver.port}/", allowed_networks=[])
    assert (message.status, message.last_error, message.attempts) == ("given_up", "address_not_allowed", 3)
    assert receiver.connections == 0


def test_plain_http_is_not_sent_any_more_once_it_is_forbidden(sender: Sender, receiver: Receiver) -> None:
    assert sender.send(receiver.url, allow_http=False).last_error == "address_not_allowed"
    assert receiver.connections == 0


def test_a_name_with_a_good_and_a_bad_address_is_not_connected_to(
    sender: Sender, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    for answer in (["127.0.0.1", "127.0.0.2"], ["127.0.0.2", "127.0.0.1"]):
        Names(monkeypatch, answer)
        assert sender.send(f"http://rebind.test:{receiver.port}/").last_error == "address_not_allowed"
    assert receiver.connections == 0


def test_a_name_that_changes_after_the_check_gains_nothing(
    sender: Sender, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The address that was checked is the one connected to; the next attempt checks again."""
    with receiving("127.0.0.2", receiver.port) as inside:
        receiver.replies.append(status(500))
        resolver = Names(monkeypatch, ["127.0.0.1"], ["127.0.0.2"])
        message = sender.send(f"http://rebind.test:{receiver.port}/")
        assert (message.status, message.last_error) == ("given_up", "address_not_allowed")
        assert (resolver.asked, receiver.connections, inside.connections) == (3, 1, 0)
        assert receiver.messages[0].headers["host"] == f"rebind.test:{receiver.port}"


@contextlib.contextmanager
def silent(host: str, port: int) -> Iterator[None]:
    """A listener that takes no connection any more: who connects hears nothing."""
    with contextlib.ExitStack() as sockets:
        listener = sockets.enter_context(socket.socket())
        listener.bind((host, port))
        listener.listen(0)
        for _ in range(3):
            waiting = sockets.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex((host, port))
        yield


@contextlib.contextmanager
def refusing(host: str, port: int) -> Iterator[None]:
    """Nobody listens there."""
    yield


@pytest.mark.parametrize("first", [refusing, silent])
def test_the_second_address_of_a_name_is_tried_too(
    sender: Sender, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, first: Any
) -> None:
    Names(monkeypatch, ["127.0.0.2", "127.0.0.1"])
    with first("127.0.0.2", receiver.port):
        message = sender.send(
            f"http://rebind.test:{receiver.port}/", allowed_networks=["127.0.0.0/8"], timeout_seconds=3
        )
    assert (message.status, message.attempts) == ("delivered", 1)


def nothing(handler: BaseHTTPRequestHandler) -> None:
    """Close the connection."""


def nonsense(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"hello?\r\n\r\n")


@pytest.mark.parametrize("reply", [nothing, nonsense])
def test_an_answer_that_is_none_is_a_failure(sender: Sender, receiver: Receiver, reply: Any) -> None:
    receiver.replies += [reply] * 3
    message = sender.send(receiver.url)
    assert (message.status, message.last_error, message.last_status_code) == ("given_up", "invalid_answer", None)


def test_the_certificate_is_that_of_the_name(sender: Sender, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    authority, tls = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("rebind.test").configure_cert(tls)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    Names(monkeypatch, ["127.0.0.1"])
    with receiving(tls=tls) as receiver:
        assert sender.send(f"https://rebind.test:{receiver.port}/").last_error == "tls_failed", "nobody knows its maker"
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        assert sender.send(f"https://127.0.0.1:{receiver.port}/").last_error == "tls_failed", "another name"
        assert sender.send(f"https://rebind.test:{receiver.port}/").status == "delivered"
        assert {message.headers["host"] for message in receiver.messages} == {f"rebind.test:{receiver.port}"}


def test_nobody_there(sender: Sender) -> None:
    with receiving() as gone:
        url = gone.url
    assert sender.send(url).last_error == "no_connection"


def test_a_receiver_that_is_gone_is_left_alone(sender: Sender, receiver: Receiver) -> None:
    receiver.replies.append(status(410))
    assert (sender.send(receiver.url).status, len(receiver.messages)) == ("given_up", 1)


def test_the_url_is_in_no_log(
    sender: Sender, receiver: Receiver, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level("DEBUG")
    receiver.replies.append(status(500))
    sender.send(receiver.url + "?token=SECRET")
    logged = caplog.text + capsys.readouterr().out
    assert "webhook_sent" in logged
    assert "SECRET" not in logged
