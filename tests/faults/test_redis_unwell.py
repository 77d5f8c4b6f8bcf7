"""F29, F30, F35: Redis stands still, is cut off half-open, or is full. Batches run; later, hints are heard again."""

import signal

import pytest
import services
from clients import User
from payloads import numbered
from proxies import GOOD, TOXICS
from pydantic import SecretStr
from wired import Wired

from jobs.dispatch import RUN_SHARD, make_celery, queue_for
from jobs.settings import Settings

ROWS = 20
PATIENT_SECONDS = 30


@pytest.fixture
def user(wired: Wired) -> User:
    """A client that waits for answers, but not for ever."""
    made = User(wired.stack)
    made.sdk = made.sdk.with_options(timeout=PATIENT_SECONDS)
    return made


def runs(user: User, batches: int = 1) -> None:
    made = [user.submit(numbered(ROWS)) for _ in range(batches)]
    for batch in made:
        assert user.wait(batch.id).status == "completed"
        assert set(user.results(user.batch(batch.id))) == {f"row-{number}" for number in range(ROWS)}


def hint(wired: Wired) -> None:
    """Send a hint for nothing, which only Redis knows of."""
    celery = make_celery(Settings(redis_url=SecretStr(wired.stack.redis_url)))
    celery.send_task(RUN_SHARD, args=["shard_unknown"], queue=queue_for("scripted"))  # type: ignore[arg-type]
    celery.close()


def hears(wired: Wired) -> None:
    before = heard(wired)
    hint(wired)
    services.wait_until(lambda: heard(wired) > before, "the worker hears hints", 120)


def heard(wired: Wired) -> int:
    return wired.worker.log.read_text().count("'claimed': False")


def test_redis_stands_still_under_load(wired: Wired, user: User) -> None:
    """F29: no call waits for it."""
    hears(wired)
    wired.redis.signal(signal.SIGSTOP)
    try:
        runs(user, batches=5)
    finally:
        wired.redis.signal(signal.SIGCONT)
    hears(wired)


def test_the_line_to_redis_is_half_open(wired: Wired, user: User) -> None:
    """F30: the worker finds out, and connects again."""
    line = wired.lines["worker-redis"]
    line.poison(TOXICS["half-open"])
    services.wait_until(lambda: line.harmed, "the line is bad")
    runs(user)
    line.poison(GOOD)
    hears(wired)


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
