"""Webhooks with real processes: registered, received and unwrapped with the stock SDK."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import services
from clients import User
from conftest import ROOT
from payloads import numbered
from receivers import REACHABLE, Receiver, receiving, status

from api.stack.program import free_port


@pytest.fixture
def reachable(stack: services.Stack) -> services.Stack:
    stack.settings = {**stack.settings, **REACHABLE}
    stack.api()
    stack.reconciler()
    return stack


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as made:
        yield made


def register(user: User, receiver: Receiver, **changes: Any) -> Any:
    event_types = ["batch.completed", "batch.cancelled", "batch.failed", "batch.expired"]
    return user.sdk.webhooks.create(**{"url": receiver.url, "name": "", "event_types": event_types, **changes})


def events(user: User, receiver: Receiver, secret: str, count: int) -> list[Any]:
    """Wait until so many messages have come, and return what the SDK makes of them."""
    services.wait_until(lambda: len(receiver.messages) >= count, f"{count} messages arrive")
    unwrap = user.sdk.webhooks.unwrap
    return [unwrap(message.body, message.headers, secret=secret) for message in receiver.messages]


def test_a_user_hears_of_each_batch_and_reads_its_results(reachable: services.Stack, receiver: Receiver) -> None:
    reachable.worker()
    user = User(reachable)
    endpoint = register(user, receiver)
    done = user.submit(numbered(3))
    (event,) = events(user, receiver, endpoint.signing_secret, 1)
    assert (event.type, event.data.id) == ("batch.completed", done.id)
    assert len(user.results(user.batch(event.data.id))) == 3, "it has ended when the message comes"
    cancelled = user.submit(numbered(2, lambda _: "SLEEP 60000"))
    user.sdk.batches.cancel(cancelled.id)
    failed = user.submit(b"{}\n")
    heard = {event.data.id: event.type for event in events(user, receiver, endpoint.signing_secret, 3)}
    assert heard == {done.id: "batch.completed", cancelled.id: "batch.cancelled", failed.id: "batch.failed"}


def test_what_a_receiver_does_not_accept_comes_again_with_the_same_id(
    reachable: services.Stack, receiver: Receiver
) -> None:
    user = User(reachable)
    endpoint = register(user, receiver)
    receiver.replies += [status(500), status(503)]
    user.submit(b"{}\n")
    tries = events(user, receiver, endpoint.signing_secret, 3)
    assert len({event.id for event in tries}) == len({message.id for message in receiver.messages}) == 1
    assert {message.id for message in receiver.messages} == {tries[0].id}

    def last() -> Any:
        answer: Any = user.sdk.get(f"/webhook_endpoints/{endpoint.id}/deliveries", cast_to=object)
        return answer["data"][0]

    services.wait_until(lambda: last()["status"] == "delivered", "it is noted")
    assert (last()["attempts"], last()["last_status_code"]) == (3, 200)


def test_while_a_secret_changes_old_and_new_are_good(reachable: services.Stack, receiver: Receiver) -> None:
    """F116."""
    user = User(reachable)
    endpoint = register(user, receiver)
    rotated = user.sdk.webhooks.rotate_secret(endpoint.id, keep_old_secret_active_for_24_hours=True)
    user.submit(b"{}\n")
    for secret in (endpoint.signing_secret, rotated.signing_secret):
        assert len(events(user, receiver, secret, 1)) == 1


def test_the_receiver_of_the_documentation_works(reachable: services.Stack, tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "webhooks.md").read_text(), re.DOTALL)
    port, log = free_port(), tmp_path / "receiver.log"
    code = blocks[1].replace("8080", str(port))
    key = reachable.key()
    user = User(reachable, key)
    endpoint = user.sdk.webhooks.create(
        name="docs", url=f"http://127.0.0.1:{port}/", event_types=["batch.failed", "batch.cancelled"]
    )
    environment = {
        **os.environ,
        "OPENAI_BASE_URL": reachable.base_url,
        "OPENAI_API_KEY": key,
        "OPENAI_WEBHOOK_SECRET": endpoint.signing_secret,
    }
    with log.open("wb") as out, subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=out) as receiver:
        try:
            services.wait_until(lambda: is_listening(port), "it listens")
            user.submit(b"{}\n")
            services.wait_until(lambda: "batch.failed None" in log.read_text(), "it has heard of the batch")
        finally:
            receiver.terminate()


def is_listening(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0
