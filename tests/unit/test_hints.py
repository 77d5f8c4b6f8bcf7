import json
from types import SimpleNamespace
from typing import Any

import pytest
from brokers import body, envelope

from workers import hints

SHARD = f"shard_{'0a' * 16}"


def test_a_hint_is_one() -> None:
    assert hints.why_not(envelope(body(SHARD))) is None


def test_a_hint_of_a_later_release_may_say_more() -> None:
    message = envelope(body(SHARD), {"new_header": {"x": 1}}, new_field=1)
    message["properties"]["delivery_info"]["redelivered"] = True
    assert hints.why_not(message) is None


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (None, "envelope"),
        ([envelope(body(SHARD))], "envelope"),
        (envelope(body(SHARD), {"eta": "2030-01-01T00:00:00"}), "envelope"),
        (envelope(body(SHARD), {"retries": 1}), "envelope"),
        (envelope(body(SHARD), {"task": "celery.chain"}), "task"),
        (envelope(body(SHARD.upper())), "body"),
        (envelope(body(None)), "body"),
        (envelope(json.dumps([[SHARD, SHARD], {}, {}]).encode()), "body"),
        (envelope(b"[" * 100_000), "body"),
        (envelope(b"\xff"), "body"),
    ],
)
def test_anything_else_is_none(message: Any, reason: str) -> None:
    assert hints.why_not(message) == reason


class Refused(Exception):
    """What Redis says."""


def guarded(item: str, deliver: Any) -> Any:
    """Return a channel in kombu's words that has read `item`, guarded."""
    transport = SimpleNamespace(_deliver=deliver)

    def read(**_: Any) -> bool:
        transport._deliver(json.loads(item), "shards")
        return True

    channel = SimpleNamespace(
        connection=transport, _brpop_read=read, handlers={}, ResponseError=Refused, connection_errors=(ConnectionError,)
    )
    hints.Refusals().guard(channel)
    return channel


def fails(error: Exception) -> Any:
    def deliver(_message: object, _queue: str) -> None:
        raise error

    return deliver


@pytest.mark.parametrize(
    ("item", "error", "said"),
    [
        (json.dumps(envelope(body(SHARD))), KeyError("words"), "hint_failed"),
        ("{", KeyError("words"), "not_json"),
        ("[]", KeyError("words"), "envelope"),
    ],
)
def test_what_went_wrong_is_told_by_its_name(
    item: str, error: Exception, said: str, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    assert guarded(item, fails(error)).handlers["BRPOP"]()
    logged = caplog.text + capsys.readouterr().out
    assert said in logged
    assert "words" not in logged
    assert ("KeyError" in logged) == (said == "hint_failed")


@pytest.mark.parametrize("error", [Refused(), ConnectionError()])
def test_what_redis_says_is_left_to_kombu(error: Exception) -> None:
    channel = guarded(json.dumps(envelope(body(SHARD))), fails(error))
    with pytest.raises(type(error)):
        channel.handlers["BRPOP"]()
