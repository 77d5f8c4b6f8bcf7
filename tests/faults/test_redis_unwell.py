"""F29, F30, F35: Redis stands still, is cut off half-open, or is full. Batches run; later, hints are heard again."""

import signal
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import pytest
import services
from clients import User
from openai.types import Batch
from payloads import numbered
from proxies import GOOD, TOXICS
from pydantic import SecretStr
from wired import Wired

from jobs.dispatch import RUN_SHARD, make_celery, queue_for
from jobs.settings import Settings

ROWS = 20
PATIENT_SECONDS = 30
# A call that asked Redis for anything would take as long as our clients of Redis wait for an answer.
REDIS_SECONDS = make_celery(Settings()).conf.broker_transport_options["socket_timeout"]


@pytest.fixture
def user(wired: Wired) -> User:
    """A client that waits for answers, but not for ever."""
    made = User(wired.stack)
    made.sdk = made.sdk.with_options(timeout=PATIENT_SECONDS)
    return made


def runs(user: User) -> None:
    completes(user, [user.submit(numbered(ROWS))])


def completes(user: User, made: list[Batch]) -> None:
    for batch in made:
        assert user.wait(batch.id).status == "completed"
        assert set(user.results(user.batch(batch.id))) == {f"row-{number}" for number in range(ROWS)}


def hint(wired: Wired) -> None:
    """Send a hint for nothing, which only Redis knows of."""
    celery = make_celery(Settings(redis_url=SecretStr(wired.stack.redis_url)))
    celery.send_task(RUN_SHARD, args=["shard_unknown"], queue=queue_for("scripted"))  # type: ignore[arg-type]
    celery.close()


def hears(wired: Wired, seconds: float = 120) -> None:
    before = heard(wired)
    hint(wired)
    services.wait_until(lambda: heard(wired) > before, "the worker hears hints", seconds)


def heard(wired: Wired) -> int:
    return wired.worker.log.read_text().count("'claimed': False")


def test_redis_stands_still_under_load(wired: Wired, user: User) -> None:
    """F29: no call waits for it. The median counts: a single call may have to wait for the machine."""
    hears(wired)
    seconds: dict[str, list[float]] = defaultdict(list)

    def timed(name: str, call: Callable[[], Any]) -> Any:
        started = time.monotonic()
        answer = call()
        seconds[name].append(time.monotonic() - started)
        return answer

    wired.redis.signal(signal.SIGSTOP)
    try:
        files = [timed("upload", lambda: user.upload(numbered(ROWS))) for _ in range(5)]
        made = [timed("create", partial(user.create, file.id)) for file in files]
        completes(user, [timed("read", partial(user.batch, batch.id)) for batch in made])
    finally:
        wired.redis.signal(signal.SIGCONT)
    assert {name: each for name, each in seconds.items() if median(each) >= REDIS_SECONDS} == {}
    hears(wired)


def test_the_line_to_redis_is_half_open(wired: Wired, user: User) -> None:
    """F30: the worker finds out, and connects again within a minute."""
    line = wired.lines["worker-redis"]
    line.poison(TOXICS["half-open"])
    services.wait_until(lambda: line.harmed, "the line is bad")
    runs(user)
    line.poison(GOOD)
    hears(wired, 60)


def test_redis_is_full(wired: Wired, user: User) -> None:
    """F35: hints cannot be sent, or not be taken; nobody is told, and nothing stops."""
    with wired.stack.redis() as redis:
        (api, *_) = wired.stack.processes
        # It gets full with hints in it: taking them out is a write too.
        wired.worker.signal(signal.SIGSTOP)
        for _ in range(3):
            hint(wired)
        redis.config_set("maxmemory", 1)
        wired.worker.signal(signal.SIGCONT)
        try:
            runs(user)
            services.wait_until(lambda: "hints_failed" in api.log.read_text(), "a hint is refused")
        finally:
            redis.config_set("maxmemory", "256mb")
    hears(wired)
    assert wired.worker.popen.poll() is None, wired.worker.tail()
