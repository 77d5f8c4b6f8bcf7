import json
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
