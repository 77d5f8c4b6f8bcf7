"""G4: a suspect is run when its worker holds nothing else, and nothing else is taken beside it."""

import services
from clients import User
from payloads import numbered
from sqlalchemy import text


def beside_suspects(stack: services.Stack) -> int:
    """Return how often a worker held anything else while it held a suspect."""
    statement = text(
        """
        SELECT count(*) FROM attempts a JOIN shards s ON s.id = a.shard_id AND a.lease_token > s.suspect_since
        JOIN attempts other ON other.worker_id = a.worker_id AND other.shard_id <> a.shard_id
        WHERE other.started_at < a.ended_at AND a.started_at < other.ended_at
        """
    )
    engine = stack.engine()
    with engine.connect() as connection:
        count: int = connection.execute(statement).scalar_one()
    engine.dispose()
    return count


def test_a_suspect_waits_for_what_runs_and_what_comes_later_waits_for_it(checked: services.Stack) -> None:
    checked.settings = {**checked.settings, "PROMPTMILL_SHARDS__MAX_REQUESTS": "2"}
    checked.api()
    checked.reconciler()
    checked.know_model("scripted")
    user = User(checked)
    batch = user.submit(numbered(10, lambda number: f"SLEEP 1 {number}"))
    engine = checked.engine()
    with engine.begin() as connection:
        connection.execute(text("UPDATE shards SET suspect_since = 0 WHERE number IN (1, 3)"))
    engine.dispose()
    checked.worker()
    batch = user.wait(batch.id)
    assert batch.request_counts and batch.request_counts.completed == 10
    assert beside_suspects(checked) == 0
