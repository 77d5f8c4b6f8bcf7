"""F14, F19, F20: requests that kill the engine each time. Each fails alone; all others of their shards complete."""

from typing import Any

import services
from clients import User
from openai.types import Batch
from payloads import numbered
from sqlalchemy import text
from supervised import supervised


def crashed(user: User, batch: Batch) -> set[str]:
    """Return the requests of a batch that failed, every one of them because the engine died of it."""
    errors = user.rows(batch.error_file_id)
    assert {row["response"]["body"]["error"]["code"] for row in errors} <= {"engine_crashed"}
    return {row["custom_id"] for row in errors}


def poison(*lines: int, marker: str = "FATAL") -> Any:
    return lambda number: marker if number in lines else f"SLEEP 0.05 {number}"


def test_f19_one_poison_among_64_fails_alone(checked: services.Stack) -> None:
    checked.api()
    checked.reconciler()
    user = User(checked)
    with supervised(checked) as worker:
        batch = user.wait(user.submit(numbered(64, poison(40))).id, 180)
    assert batch.status == "completed"
    assert crashed(user, batch) == {"row-40"}
    assert set(user.results(batch)) == {f"row-{number}" for number in range(64)}
    assert set(worker.ends) == {70}
    assert len(worker.ends) <= 2 + 6 + 1
    engine = checked.engine()
    with engine.connect() as connection:
        runs = text("SELECT count(*) FROM results WHERE lease_token > 0 AND NOT is_error")
        assert connection.execute(runs).scalar_one() == 63
    engine.dispose()


def test_f20_two_poisons_in_one_shard_and_one_of_another_project_are_each_blamed_alone(checked: services.Stack) -> None:
    checked.api()
    checked.reconciler()
    mine, theirs = User(checked), User(checked)
    batches = [
        (mine, mine.submit(numbered(6, poison(1, 4)))),
        (theirs, theirs.submit(numbered(4, poison(2)))),
    ]
    with supervised(checked):
        ended = [(user, user.wait(batch.id, 180)) for user, batch in batches]
    assert [crashed(user, batch) for user, batch in ended] == [{"row-1", "row-4"}, {"row-2"}]
    assert [len(user.results(batch)) for user, batch in ended] == [6, 4]
