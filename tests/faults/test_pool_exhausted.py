"""F49: a real API process has no connection left: calls are told so within bounds, and are taken again afterwards."""

import time
from concurrent.futures import ThreadPoolExecutor

import services
from clients import User, is_not_now
from openai import InternalServerError
from payloads import numbered
from sqlalchemy import text

from jobs import db

CALLS, CONNECTIONS, STATEMENT_SECONDS = 30, 2, 3
# A call waits for a connection to look its key up, for one to do its work, and then for the lock. One after the other on
# two connections, they would take CALLS / CONNECTIONS * STATEMENT_SECONDS, 45 s.
BOUND_SECONDS = 2 * db.WAIT_SECONDS + STATEMENT_SECONDS + 15


def refused_after(user: User, file_id: str) -> float:
    """Return how long it took to be refused, seconds."""
    began = time.monotonic()
    try:
        made = user.sdk.batches.create(
            input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h", timeout=60
        )
    except InternalServerError as error:
        assert is_not_now(error)  # noqa: PT017  other errors are raised
        return time.monotonic() - began
    raise AssertionError(made)


def test_thirty_calls_on_two_connections_are_refused_soon(checked: services.Stack) -> None:
    checked.leaves_open = True
    checked.api(
        PROMPTMILL_API__DATABASE_CONNECTIONS=str(CONNECTIONS), PROMPTMILL_STATEMENT_SECONDS=str(STATEMENT_SECONDS)
    )
    checked.know_model("scripted")
    user = User(checked)
    file = user.sdk.files.create(file=("a.jsonl", numbered(3)), purpose="batch")
    engine = checked.engine()
    with engine.begin() as connection, ThreadPoolExecutor(CALLS) as many:
        connection.execute(text("LOCK TABLE batches"))
        seconds = list(many.map(lambda _: refused_after(user, file.id), range(CALLS)))
    engine.dispose()
    assert max(seconds) < BOUND_SECONDS
    assert list(user.sdk.batches.list()) == [], "what was refused is not there"
    assert user.submit(numbered(3)).status in ("validating", "in_progress")
