"""The stock SDK is the judge of what is sent."""

import time
from datetime import UTC, datetime
from typing import Any

import pytest
from openai import InvalidWebhookSignatureError, OpenAI

from jobs import events
from jobs.events import Event, EventType
from jobs.states import TERMINAL

ENDED_AT = datetime(2026, 1, 1, tzinfo=UTC)


def unwrap(event: Event, signing: list[str], secret: str, sent_at: datetime | None = None) -> Any:
    headers = events.headers(event, signing, sent_at or datetime.now(UTC))
    with OpenAI(api_key="none") as client:
        return client.webhooks.unwrap(event.body(), headers, secret=secret)


@pytest.mark.parametrize("kind", EventType)
def test_the_sdk_accepts_every_event(kind: EventType) -> None:
    secret = events.new_secret()
    event = unwrap(Event("evt_1", kind, "batch_1", ENDED_AT), [secret], secret)
    assert type(event).__name__ == kind.value.title().replace(".", "") + "WebhookEvent"
    assert (event.id, event.object, event.type) == ("evt_1", "event", kind)
    assert (event.data.id, event.created_at) == ("batch_1", int(ENDED_AT.timestamp()))


def test_there_is_an_event_for_every_end() -> None:
    assert {events.event_type(status) for status in TERMINAL} == set(EventType)


def test_while_a_secret_changes_both_are_good() -> None:
    old, new = events.new_secret(), events.new_secret()
    event = Event("evt_1", EventType.COMPLETED, "batch_1", ENDED_AT)
    for secret in (old, new):
        assert unwrap(event, [new, old], secret).id == "evt_1"
    with pytest.raises(InvalidWebhookSignatureError):
        unwrap(event, [new], old)


def test_a_message_is_signed_for_the_moment_of_its_attempt() -> None:
    secret = events.new_secret()
    event = Event("evt_1", EventType.COMPLETED, "batch_1", datetime.fromtimestamp(0, UTC))
    assert unwrap(event, [secret], secret).created_at == 0
    with pytest.raises(InvalidWebhookSignatureError, match="too old"):
        unwrap(event, [secret], secret, datetime.fromtimestamp(time.time() - 400, UTC))


def test_a_hint_gives_the_secret_away_no_more_than_it_must() -> None:
    secret = events.new_secret()
    assert secret[:-5].removeprefix("whsec_") not in events.secret_hint(secret)
    assert len(events.secret_hint(secret)) == len("whsec_...12345")
