"""F44: the line is cut after COMMIT was carried out, before its answer comes. Nothing is there twice, nothing is lost."""

from collections.abc import Callable
from typing import Any

import pytest
import services
from clients import User, is_not_now
from openai import InternalServerError
from payloads import numbered
from wired import Wired

ROWS = 40


def twice(call: Callable[[], Any]) -> Any:
    """Make a call whose answer is "not now", and make it again."""
    with pytest.raises(InternalServerError) as refused:
        call()
    assert is_not_now(refused.value)
    return call()


def test_a_file_and_a_batch_are_made_once(wired: Wired) -> None:
    user, line = User(wired.stack), wired.lines["api-postgres"]
    data, key = numbered(ROWS), {"Idempotency-Key": "one"}

    def upload() -> Any:
        return user.sdk.files.create(file=("a.jsonl", data), purpose="batch", extra_headers=key)

    line.cut_commit(b"UPDATE calls SET object_id")
    file = twice(upload)
    assert line.commits_cut == 1
    assert [each.id for each in user.sdk.files.list()] == [file.id]

    def create() -> Any:
        return user.sdk.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", extra_headers=key
        )

    line.cut_commit(b"INSERT INTO batches")
    batch = twice(create)
    assert line.commits_cut == 1
    assert [each.id for each in user.sdk.batches.list()] == [batch.id]
    assert set(user.results(user.wait(batch.id))) == {f"row-{number}" for number in range(ROWS)}


def test_a_batch_is_cancelled_once(wired: Wired) -> None:
    user, line = User(wired.stack), wired.lines["api-postgres"]
    batch = user.submit(numbered(ROWS, lambda _: "SLEEP 60"))
    line.cut_commit(b"cancelling_at=app_now()")
    twice(lambda: user.sdk.batches.cancel(batch.id))
    assert line.commits_cut == 1
    assert user.wait(batch.id).status == "cancelled"


@pytest.mark.parametrize(
    ("commit", "marker"),
    [
        ("claim", b"lease_token = s.lease_token + 1"),
        ("results", b"COPY results"),
        ("heartbeat", b"SET lease_until = app_now()"),
        ("end of the batch", b"finalizing_at=app_now()"),
    ],
)
def test_a_worker_goes_on_after(wired: Wired, commit: str, marker: bytes) -> None:
    user, line = User(wired.stack), wired.lines["worker-postgres"]
    line.cut_commit(marker)
    batch = user.submit(numbered(ROWS, lambda number: f"SLEEP {1 if commit == 'heartbeat' else 0} {number}"))
    services.wait_until(lambda: line.commits_cut == 1, f"the commit of the {commit} is cut")
    batch = user.wait(batch.id)
    assert batch.status == "completed"
    assert set(user.results(batch)) == {f"row-{number}" for number in range(ROWS)}
