"""F110: a small batch behind a huge one of another project, through Celery: the hints of the huge one are first in Redis."""

import pytest
import services
from clients import User, done
from payloads import numbered


@pytest.fixture
def running(stack: services.Stack) -> services.Stack:
    few_at_once = {"PROMPTMILL_SHARDS__MAX_REQUESTS": "5", "PROMPTMILL_WORKER__MAX_SHARDS": "2"}
    stack.settings = {**stack.settings, **few_at_once}
    stack.api()
    stack.worker()
    return stack


def test_a_small_batch_is_done_while_a_huge_one_of_another_project_goes_on(running: services.Stack) -> None:
    huge, small = User(running), User(running)
    long = huge.submit(numbered(400, lambda _: "SLEEP 0.2"))
    huge.wait_for(long.id, lambda batch: done(batch) > 0)
    short = small.wait(small.submit(numbered(5)).id)
    assert short.status == "completed"
    assert done(huge.batch(long.id)) < 200


def test_a_batch_with_a_higher_priority_overtakes_one_of_its_own_project(running: services.Stack) -> None:
    user = User(running)
    first = user.submit(numbered(400, lambda _: "SLEEP 0.2"))
    user.wait_for(first.id, lambda batch: done(batch) > 0)
    urgent = user.submit(numbered(5), metadata={"promptmill_priority": "10"})
    assert user.wait(urgent.id).status == "completed"
    assert done(user.batch(first.id)) < 200
