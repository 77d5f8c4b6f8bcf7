"""F12, F14, F19, F20: requests that kill the engine, or hang it, each time. Each fails alone; its neighbours complete."""

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


def poison(*lines: int) -> Any:
    return lambda number: "FATAL" if number in lines else f"SLEEP 0.05 {number}"


ONE_DEATH = {"PROMPTMILL_SHARDS__MOST_DEATHS": "1"}


def test_f19_one_poison_among_64_fails_alone(checked: services.Stack) -> None:
    checked.api()
    checked.reconciler()
    checked.know_model("scripted")
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
    checked.know_model("scripted")
    mine, theirs = User(checked), User(checked)
    batches = [
        (mine, mine.submit(numbered(3, poison(0, 2)))),
        (theirs, theirs.submit(numbered(2, poison(1)))),
    ]
    with supervised(checked):
        ended = [(user, user.wait(batch.id, 180)) for user, batch in batches]
    assert [crashed(user, batch) for user, batch in ended] == [{"row-0", "row-2"}, {"row-1"}]
    assert [len(user.results(batch)) for user, batch in ended] == [3, 2]


def test_f12_a_request_that_hangs_the_engine_fails_alone(checked: services.Stack) -> None:
    checked.settings = {**checked.settings, **ONE_DEATH}
    checked.api()
    checked.reconciler()
    checked.know_model("scripted")
    user = User(checked)
    with supervised(checked, PROMPTMILL_WORKER__STALL_SECONDS="5") as worker:
        batch = user.wait(user.submit(numbered(5, lambda number: "HANG" if number == 2 else "x")).id)
        # It says that its engine died, which ends the batch, and then it ends.
        services.wait_until(lambda: worker.ends == [70, 70], "the second worker ends")
    assert crashed(user, batch) == {"row-2"}
    assert len(user.results(batch)) == 5


def test_a_request_that_kills_the_whole_worker_fails_alone_and_one_that_did_so_once_does_not(
    checked: services.Stack,
) -> None:
    """Nobody can report such a death: the lease ends, and the worker is not seen again."""
    checked.settings = {**checked.settings, **ONE_DEATH}
    checked.api()
    checked.reconciler()
    checked.know_model("scripted")
    user, other = User(checked), User(checked)
    batch = user.submit(numbered(1, lambda _: "CRASH"))
    innocent = other.submit(numbered(2, lambda number: f"CRASH_ONCE {checked.home / 'crashed'} {number}"))
    with supervised(checked) as worker:
        batch, innocent = user.wait(batch.id), other.wait(innocent.id)
    assert crashed(user, batch) == {"row-0"}
    assert crashed(other, innocent) == set()
    assert len(other.results(innocent)) == 2
    assert set(worker.ends) == {-9}
