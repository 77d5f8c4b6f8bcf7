"""SDK: lost answers and retries"""

from typing import Any

import openai
import pytest
from conformance import proxy
from conformance.proxy import LosesTheFirst
from conformance.user import User, unique


def test_cancel_completed_is_one_request(user: User) -> None:
    """The SDK repeats a 409 unless `x-should-retry` is `false`: cancelling a completed batch is exactly one HTTP request."""
    batch = user.run(user.make.data(1))
    with proxy.serving(user.target.base_url) as way, user.through(way.base_url) as retrying:
        retrying.refused(409, lambda: retrying.sdk.batches.cancel(batch.id))
    user.see(len(way.calls), "HTTP request(s)")
    assert len(way.calls) == 1, f"{len(way.calls)} HTTP requests"


def test_lost_answer_to_create(user: User) -> None:
    """A `batches.create` whose answer got lost is repeated by the SDK; there is one batch."""
    tag = unique("lost")
    file = user.upload(user.make.data(1))
    losing = LosesTheFirst("/batches")
    with proxy.serving(user.target.base_url, losing) as way, user.through(way.base_url) as retrying:
        batch = retrying.create(file.id, metadata={"tag": tag})
    assert losing.lost
    found = [each.id for each in user.sdk.batches.list(limit=100).data if (each.metadata or {}).get("tag") == tag]
    user.see(len(way.calls), "requests,", len(found), "batch(es)")
    assert found == [batch.id]


def test_lost_answer_to_upload(user: User) -> None:
    """A `files.create` whose answer got lost is repeated by the SDK; there is one file."""
    name = unique("lost")
    losing = LosesTheFirst("/files")
    with proxy.serving(user.target.base_url, losing) as way, user.through(way.base_url) as retrying:
        file = retrying.upload(b"", file=(name, user.make.data(1)))
    assert losing.lost
    found = [each.id for each in user.sdk.files.list(limit=100).data if each.filename == name]
    user.see(len(way.calls), "requests,", len(found), "file(s)")
    assert found == [file.id]


def test_rate_limit(user: User, connect: Any) -> None:
    """429 in the envelope, with `retry-after-ms`, which the SDK waits for."""
    limited: User = connect(user.target.rate_limited_api_key, "--rate-limited-api-key")
    with pytest.raises(openai.RateLimitError) as refused:
        file = limited.upload(limited.make.data(1))
        for _ in range(100):
            limited.create(file.id)
    wait = refused.value.response.headers.get("retry-after-ms")
    user.see(refused.value.status_code, refused.value.code)
    assert refused.value.type
    assert wait is not None and 0 < float(wait) <= 120_000, f"retry-after-ms is {wait}"
