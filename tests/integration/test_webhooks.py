"""Messages to webhooks: written with the end of a batch, sent until they arrive."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import services
from openai import InvalidWebhookSignatureError, OpenAI
from payloads import CHAT, numbered
from sqlalchemy import Connection, text

from jobs import batches, db, idempotency, keys, lifecycle, outbox, vault, webhooks
from jobs.batches import NewBatch
from jobs.errors import ConfigurationError, InvalidRequest, NotFound
from jobs.events import EventType
from jobs.idempotency import Call
from jobs.outbox import Answer, Delivery
from jobs.protocol import WebhookEndpointCreate, WebhookEndpointUpdate
from jobs.settings import Webhooks

URL = "https://receiver.example.com/hook"
SETTINGS = Webhooks(key_file=services.KEY_FILE)
OK, BROKEN, GONE = Answer(200), Answer(500), Answer(410)


class Hooks:
    """Webhooks of one project, and a courier that sends nothing."""

    def __init__(self, domain: Any, project_id: str | None = None) -> None:
        self.domain, self.project_id = domain, project_id or domain.project_id

    @contextlib.contextmanager
    def later(self, seconds: float = 0) -> Iterator[Connection]:
        """Open a transaction in the future."""
        with db.transaction(self.domain.engine) as connection:
            shift = text("SELECT set_config('promptmill.clock_offset', :offset, true)")
            connection.execute(shift, {"offset": f"{seconds} seconds"})
            yield connection

    def add(self, url: str = URL, **fields: Any) -> str:
        with self.later() as connection:
            new = WebhookEndpointCreate(url=url, **fields)
            return webhooks.create(connection, self.project_id, new, SETTINGS)

    def take(self, seconds: float = 0) -> Delivery | None:
        with self.later(seconds) as connection:
            return outbox.take(connection, SETTINGS)

    def must_take(self, seconds: float = 0) -> Delivery:
        delivery = self.take(seconds)
        assert delivery
        return delivery

    def note(self, delivery: Delivery, answer: Answer, seconds: float = 0) -> None:
        with self.later(seconds) as connection:
            outbox.note(connection, delivery, answer, SETTINGS)

    def list(self, endpoint_id: str) -> Any:
        with self.later() as connection:
            return webhooks.list_deliveries(connection, self.project_id, endpoint_id, after=None, limit=100)[0]

    def one(self, endpoint_id: str) -> Any:
        (delivery,) = self.list(endpoint_id)
        return delivery

    def find(self, endpoint_id: str) -> Any:
        with self.later() as connection:
            return webhooks.find_with_secret(connection, self.project_id, endpoint_id, SETTINGS)


@pytest.fixture
def hooks(domain: Any) -> Hooks:
    return Hooks(domain)


def settle(domain: Any, batch_id: str) -> None:
    with db.transaction(domain.engine) as connection:
        lifecycle.settle(connection, batch_id, domain.settings.retention)


def completed(domain: Any) -> str:
    batch_id: str = domain.new_batch(1)
    domain.write(domain.claim(domain.shards(batch_id)[0].id), [1])
    settle(domain, batch_id)
    return batch_id


def failed(domain: Any) -> str:
    batch_id: str = domain.create("file-unknown")
    return batch_id


def expired(domain: Any) -> str:
    batch_id: str = domain.new_batch(1)
    domain.execute("UPDATE batches SET expires_at = app_now() WHERE id = :id", id=batch_id)
    settle(domain, batch_id)
    return batch_id


def cancelled(domain: Any) -> str:
    batch_id: str = domain.new_batch(1)
    with db.transaction(domain.engine) as connection:
        batches.cancel(connection, domain.project_id, batch_id)
    settle(domain, batch_id)
    return batch_id


ENDS: list[Callable[[Any], str]] = [completed, failed, expired, cancelled]


@pytest.mark.parametrize("end", ENDS)
def test_every_end_of_a_batch_writes_one_message(domain: Any, hooks: Hooks, end: Callable[[Any], str]) -> None:
    endpoint_id = hooks.add()
    batch_id = end(domain)
    settle(domain, batch_id)
    message = hooks.one(endpoint_id)
    assert (message.type, message.batch_id) == (f"batch.{end.__name__}", batch_id)
    assert (message.status, message.attempts) == ("waiting", 0)
    delivery = hooks.must_take()
    assert (delivery.event.id, delivery.event.batch_id, delivery.url) == (message.id, batch_id, URL)


@pytest.mark.parametrize("end", ENDS)
def test_an_end_that_is_rolled_back_writes_nothing(
    domain: Any, hooks: Hooks, end: Callable[[Any], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint_id = hooks.add()
    announce = outbox.announce

    def break_afterwards(*arguments: Any) -> None:
        announce(*arguments)
        raise RuntimeError

    monkeypatch.setattr(outbox, "announce", break_afterwards)
    with pytest.raises(RuntimeError):
        end(domain)
    assert hooks.list(endpoint_id) == []


def test_an_endpoint_is_told_what_it_asked_for(domain: Any, hooks: Hooks) -> None:
    endpoint_id = hooks.add(event_types=[EventType.FAILED, EventType.EXPIRED, EventType.FAILED])
    for end in ENDS:
        end(domain)
    assert {message.type for message in hooks.list(endpoint_id)} == {"batch.failed", "batch.expired"}


def test_what_ended_before_an_endpoint_was_made_is_not_told(domain: Any, hooks: Hooks) -> None:
    failed(domain)
    assert hooks.list(hooks.add()) == []


def test_a_project_hears_of_its_own_batches_only(domain: Any, hooks: Hooks) -> None:
    with db.transaction(domain.engine) as connection:
        key = keys.create(connection, project="other", name="")
        others = Hooks(domain, keys.authenticate(connection, key).project_id)
    mine, theirs = hooks.add(), others.add()
    failed(domain)
    assert len(hooks.list(mine)) == 1
    assert others.list(theirs) == []
    with pytest.raises(NotFound):
        others.list(mine)
    with pytest.raises(NotFound):
        others.find(mine)
    with pytest.raises(NotFound), others.later() as connection:
        webhooks.remove(connection, others.project_id, mine)
    with pytest.raises(NotFound), others.later() as connection:
        webhooks.rotate(connection, others.project_id, mine, SETTINGS, keep_old=False)


def test_a_deleted_endpoint_gets_nothing_more(domain: Any, hooks: Hooks) -> None:
    endpoint_id = hooks.add()
    failed(domain)
    delivery = hooks.must_take()
    with hooks.later() as connection:
        webhooks.remove(connection, hooks.project_id, endpoint_id)
    hooks.note(delivery, BROKEN)
    assert hooks.take(seconds=86_400) is None
    with pytest.raises(NotFound):
        hooks.find(endpoint_id)
    assert domain.execute("SELECT count(*) FROM webhook_deliveries") == [(0,)]


def test_a_batch_ends_while_an_endpoint_is_being_deleted(domain: Any, hooks: Hooks) -> None:
    """A foreign key to the endpoint would fail the transaction that ends the batch."""
    endpoint_id = hooks.add()
    ended: list[str] = []
    ending = threading.Thread(target=lambda: ended.append(failed(domain)))
    with hooks.later() as connection:
        webhooks.remove(connection, hooks.project_id, endpoint_id)
        ending.start()
        waiting = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        services.wait_until(lambda: domain.execute(waiting), "the batch waits for the endpoint", 10)
    ending.join()
    assert domain.batch(ended[0]).status == "failed"


def test_one_courier_is_at_an_endpoint_at_a_time(domain: Any, hooks: Hooks) -> None:
    endpoint_id = hooks.add()
    first, second = failed(domain), failed(domain)
    delivery = hooks.must_take()
    assert delivery.event.batch_id == first
    assert hooks.take() is None
    hooks.note(delivery, OK)
    assert hooks.must_take().event.batch_id == second
    assert {message.status for message in hooks.list(endpoint_id)} == {"delivered", "waiting"}


def test_a_courier_that_died_is_followed_by_one_that_sends_the_same_message(domain: Any, hooks: Hooks) -> None:
    endpoint_id = hooks.add()
    failed(domain)
    lost = hooks.must_take()
    after = SETTINGS.timeout_seconds + outbox.LEASE_MARGIN_SECONDS + 1
    again = hooks.must_take(after)
    assert (again.event.id, again.event.body()) == (lost.event.id, lost.event.body())
    assert (lost.attempt, again.attempt) == (1, 2)
    hooks.note(lost, BROKEN, after)
    assert hooks.one(endpoint_id).last_status_code is None, "the first one was overtaken"
    hooks.note(again, OK, after)
    hooks.note(again, BROKEN, after)
    assert (hooks.one(endpoint_id).status, hooks.one(endpoint_id).last_status_code) == ("delivered", 200)


def test_endpoints_take_turns(domain: Any, hooks: Hooks) -> None:
    ids = [hooks.add() for _ in range(3)]
    for _ in range(2):
        failed(domain)
    turns = []
    for _ in range(6):
        delivery = hooks.must_take()
        turns.append(delivery.endpoint_id)
        hooks.note(delivery, OK)
    assert turns == ids * 2


def test_a_project_with_many_silent_endpoints_does_not_take_every_turn(domain: Any, hooks: Hooks) -> None:
    with db.transaction(domain.engine) as connection:
        other = keys.authenticate(connection, keys.create(connection, project="other", name="")).project_id
    silent = {hooks.add() for _ in range(5)}
    wanted = Hooks(domain, other).add()
    for project_id in (domain.project_id, other):
        with db.transaction(domain.engine) as connection:
            batches.create(connection, project_id, NewBatch("file-nope", CHAT, "24h", 86_400), domain.settings)
    taken = [hooks.must_take().endpoint_id for _ in range(2)]
    assert wanted in taken, "one of its own is under way already, so it is the other's turn"
    assert set(taken) - {wanted} < silent


def test_a_message_is_tried_for_three_days_and_then_given_up(domain: Any, hooks: Hooks) -> None:
    endpoint_id = hooks.add()
    failed(domain)
    now, sent = 0.0, []
    while (message := hooks.one(endpoint_id)).status == "waiting":
        delivery = hooks.must_take(now)
        sent.append(delivery.event.id)
        hooks.note(delivery, BROKEN, now)
        assert hooks.take(now) is None, "not before its time"
        now = domain.execute(
            "SELECT coalesce(extract(epoch FROM max(next_at) - app_now()), :now) + 0.1 FROM webhook_deliveries", now=now
        )[0][0]
        now = float(now)
    assert message.status == "given_up"
    assert (message.attempts, message.last_status_code) == (10, 500)
    assert sent == [message.id] * 10
    assert 2.5 * 86_400 < now < 3.5 * 86_400
    assert hooks.take(now + 86_400) is None


@pytest.mark.parametrize(
    ("answer", "least", "most"),
    [
        (BROKEN, 4, 6),
        (Answer(error="timeout"), 4, 6),
        (Answer(302), 4, 6),
        (Answer(429, retry_after_seconds=60), 60, 60),
        (Answer(503, retry_after_seconds=60), 60, 60),
        (Answer(429, retry_after_seconds=1), 4, 6),
        (Answer(503, retry_after_seconds=10**9), 86_400, 86_400),
        (Answer(500, retry_after_seconds=60), 4, 6),
    ],
)
def test_pauses(answer: Answer, least: float, most: float) -> None:
    pause = outbox.pause_seconds(1, answer, SETTINGS)
    assert pause is not None
    assert least <= pause <= most


def test_an_endpoint_that_is_gone_is_disabled_until_its_url_is_set(domain: Any, hooks: Hooks) -> None:
    endpoint_id = hooks.add()
    failed(domain)
    failed(domain)
    hooks.note(hooks.must_take(), GONE)
    assert hooks.find(endpoint_id).disabled_at is not None
    failed(domain)
    messages = hooks.list(endpoint_id)
    assert [message.status for message in messages] == ["given_up", "given_up"]
    assert {message.last_status_code for message in messages} == {410, None}
    with hooks.later() as connection:
        webhooks.change(
            connection, hooks.project_id, endpoint_id, WebhookEndpointUpdate(url="https://new.example.com"), SETTINGS
        )
    failed(domain)
    assert hooks.find(endpoint_id).disabled_at is None
    assert hooks.must_take().url == "https://new.example.com"


def test_an_old_url_that_is_gone_does_not_disable_the_new_one(domain: Any, hooks: Hooks) -> None:
    endpoint_id = hooks.add()
    failed(domain)
    delivery = hooks.must_take()
    with hooks.later() as connection:
        webhooks.change(
            connection, hooks.project_id, endpoint_id, WebhookEndpointUpdate(url="https://new.example.com"), SETTINGS
        )
    hooks.note(delivery, GONE)
    assert (hooks.find(endpoint_id).disabled_at, hooks.one(endpoint_id).status) == (None, "waiting")


def accepts(secret: str, delivery: Delivery) -> bool:
    assert delivery.headers
    with OpenAI(api_key="none") as client:
        try:
            client.webhooks.unwrap(delivery.event.body(), delivery.headers, secret=secret)
        except InvalidWebhookSignatureError:
            return False
    return True


@pytest.mark.parametrize("keep_old", [True, False])
def test_the_old_secret_signs_for_a_day_if_it_is_kept(domain: Any, hooks: Hooks, keep_old: bool) -> None:
    endpoint_id = hooks.add()
    old = hooks.find(endpoint_id).signing_secret
    with hooks.later() as connection:
        webhooks.rotate(connection, hooks.project_id, endpoint_id, SETTINGS, keep_old=keep_old)
    new = hooks.find(endpoint_id).signing_secret
    assert new != old
    failed(domain)
    delivery = hooks.must_take()
    assert (accepts(new, delivery), accepts(old, delivery)) == (True, keep_old)
    hooks.note(delivery, BROKEN)
    domain.execute("UPDATE webhook_endpoints SET previous_secret_until = previous_secret_until - interval '1 day'")
    domain.execute("UPDATE webhook_deliveries SET next_at = app_now()")
    delivery = hooks.must_take()
    assert (accepts(new, delivery), accepts(old, delivery)) == (True, False)


def test_a_project_has_so_many_endpoints_and_no_more(hooks: Hooks) -> None:
    """F110."""
    for _ in range(SETTINGS.max_endpoints):
        hooks.add()
    with pytest.raises(InvalidRequest, match="at most"):
        hooks.add()


def test_old_messages_are_forgotten(domain: Any, hooks: Hooks) -> None:
    endpoint_id = hooks.add()
    failed(domain)
    hooks.note(hooks.must_take(), OK)
    for seconds, left in ((29 * 86_400, 1), (31 * 86_400, 0)):
        with hooks.later(seconds) as connection:
            outbox.forget(connection, keep_seconds=SETTINGS.keep_seconds)
        assert len(hooks.list(endpoint_id)) == left


def test_a_key_that_made_a_deleted_endpoint_makes_a_new_one(domain: Any, hooks: Hooks) -> None:
    call = Call(domain.caller, "/v1/webhook_endpoints", key="k")

    def create() -> tuple[str, bool]:
        with hooks.later() as connection:
            new = WebhookEndpointCreate(url=URL)
            return idempotency.once(
                connection, call, b"print", lambda: webhooks.create(connection, hooks.project_id, new, SETTINGS)
            )

    first, _ = create()
    assert create() == (first, False)
    with hooks.later() as connection:
        webhooks.remove(connection, hooks.project_id, first)
    second, is_new = create()
    assert is_new
    assert second != first


def test_a_batch_in_the_middle_tells_nothing(domain: Any, hooks: Hooks) -> None:
    endpoint_id = hooks.add()
    batch_id = domain.create(domain.upload(numbered(2)))
    domain.write(domain.claim(domain.shards(batch_id)[0].id), [1])
    assert hooks.list(endpoint_id) == []


def stored(domain: Any) -> list[str]:
    rows = domain.execute("SELECT secret, previous_secret FROM webhook_endpoints")
    return [each for row in rows for each in row if each]


def test_secrets_are_sealed_in_the_database(domain: Any, hooks: Hooks) -> None:
    endpoint_id = hooks.add()
    first = hooks.find(endpoint_id).signing_secret
    with hooks.later() as connection:
        webhooks.rotate(connection, hooks.project_id, endpoint_id, SETTINGS, keep_old=True)
    second = hooks.find(endpoint_id).signing_secret
    sealed = stored(domain)
    assert len(sealed) == 2
    assert not [secret for secret in (first, second) if secret.removeprefix("whsec_") in "".join(sealed)]
    assert hooks.find(endpoint_id).signing_secret_hint == f"whsec_...{second[-5:]}"


def test_a_new_key_seals_what_the_old_ones_and_no_key_sealed(domain: Any, hooks: Hooks, tmp_path: Path) -> None:
    endpoint_id = hooks.add()
    old = hooks.find(endpoint_id).signing_secret
    with hooks.later() as connection:
        webhooks.rotate(connection, hooks.project_id, endpoint_id, SETTINGS, keep_old=True)
    new = hooks.find(endpoint_id).signing_secret
    # As a release that did not seal left it.
    domain.execute("UPDATE webhook_endpoints SET previous_secret = :old, secret_hint = NULL", old=old)
    key_file = tmp_path / "keys"
    key_file.write_text(services.KEY_FILE.read_text() + vault.new_key() + "\n")
    after = SETTINGS.model_copy(update={"key_file": key_file})
    with hooks.later() as connection:
        assert webhooks.seal_all(connection, after) == 1
    key_file.write_text(key_file.read_text().splitlines()[-1])
    failed(domain)
    with hooks.later() as connection:
        delivery = outbox.take(connection, after)
    assert delivery
    assert (accepts(new, delivery), accepts(old, delivery)) == (True, True)


def test_a_secret_whose_key_is_lost_holds_up_no_other(domain: Any, hooks: Hooks, tmp_path: Path) -> None:
    lost = hooks.add()
    key_file = tmp_path / "keys"
    key_file.write_text(vault.new_key())
    after = SETTINGS.model_copy(update={"key_file": key_file})
    with hooks.later() as connection:
        readable = webhooks.create(connection, hooks.project_id, WebhookEndpointCreate(url=URL), after)
    failed(domain)
    taken = {}
    for _ in range(2):
        with hooks.later() as connection:
            delivery = outbox.take(connection, after)
        assert delivery
        taken[delivery.endpoint_id] = delivery
    assert taken[readable].headers
    assert taken[lost].headers is None
    with pytest.raises(ConfigurationError), hooks.later() as connection:
        webhooks.seal_all(connection, after)


def rotations(domain: Any) -> int:
    return int(domain.execute("SELECT count(*) FROM audit_log WHERE action = 'webhook.rotated'")[0][0])


def test_sealing_sets_right_what_is_shown_and_is_no_rotation(domain: Any, hooks: Hooks) -> None:
    endpoint_id = hooks.add()
    secret = hooks.find(endpoint_id).signing_secret
    # As a release that did not seal left it.
    domain.execute("UPDATE webhook_endpoints SET secret = :secret, secret_hint = NULL", secret=secret)
    for _ in range(2):
        with hooks.later() as connection:
            webhooks.seal_all(connection, SETTINGS)
    assert hooks.find(endpoint_id).signing_secret_hint == f"whsec_...{secret[-5:]}"
    assert rotations(domain) == 0


def test_a_rotation_is_noted_where_nothing_was_shown_of_the_secret(domain: Any, hooks: Hooks) -> None:
    endpoint_id = hooks.add()
    domain.execute("UPDATE webhook_endpoints SET secret_hint = NULL")
    with hooks.later(1) as connection:
        webhooks.rotate(connection, hooks.project_id, endpoint_id, SETTINGS, keep_old=False)
    assert rotations(domain) == 1


def test_a_secret_that_signs_no_more_need_not_be_readable_to_seal(domain: Any, hooks: Hooks) -> None:
    endpoint_id = hooks.add()
    with hooks.later() as connection:
        webhooks.rotate(connection, hooks.project_id, endpoint_id, SETTINGS, keep_old=True)
    domain.execute("UPDATE webhook_endpoints SET previous_secret = 'of a key that is gone'")
    with pytest.raises(ConfigurationError), hooks.later() as connection:
        webhooks.seal_all(connection, SETTINGS)
    with hooks.later(webhooks.OVERLAP_SECONDS + 1) as connection:
        assert webhooks.seal_all(connection, SETTINGS) == 1
    assert domain.execute("SELECT previous_secret FROM webhook_endpoints") == [(None,)]


def test_without_a_key_there_are_no_webhooks(domain: Any, hooks: Hooks) -> None:
    with pytest.raises(InvalidRequest, match="no key"), hooks.later() as connection:
        webhooks.create(connection, hooks.project_id, WebhookEndpointCreate(url=URL), Webhooks())
