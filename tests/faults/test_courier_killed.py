"""F116: the courier is killed after the receiver has its message and before that is noted. It comes again, the same."""

import threading
from http.server import BaseHTTPRequestHandler
from typing import Any

import services
from clients import User
from receivers import REACHABLE, receiving, status
from sqlalchemy import text


def test_a_message_that_nobody_noted_comes_again_with_the_same_id(checked: services.Stack) -> None:
    checked.settings = {**checked.settings, **REACHABLE}
    checked.api()
    courier = checked.reconciler()
    user = User(checked)
    go_on = threading.Event()

    def late(handler: BaseHTTPRequestHandler) -> None:
        go_on.wait(60)
        status(200)(handler)

    with receiving() as receiver:
        receiver.replies.append(late)
        endpoint: Any = user.sdk.webhooks.create(url=receiver.url, name="", event_types=["batch.failed"])
        user.submit(b"{}\n")
        services.wait_until(lambda: receiver.messages, "the message has come")
        courier.kill()
        go_on.set()
        checked.reconciler()
        engine = checked.engine()
        with engine.begin() as connection:
            # The lease of the one that died, which lasts for longer than a test should.
            connection.execute(text("UPDATE webhook_endpoints SET free_at = app_now()"))
        engine.dispose()
        services.wait_until(lambda: len(receiver.messages) == 2, "it has come again")
        first, second = receiver.messages
        assert (first.id, first.body) == (second.id, second.body)
        for message in receiver.messages:
            user.sdk.webhooks.unwrap(message.body, message.headers, secret=endpoint.signing_secret)
