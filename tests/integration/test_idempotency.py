import threading
from typing import Any

import pytest
import services

from jobs import db, idempotency
from jobs.errors import StateConflict
from jobs.idempotency import Call

PRINT, OTHER = b"1" * 32, b"2" * 32


class Maker:
    """Makes objects, and counts them."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self) -> str:
        self.made += 1
        return f"object-{self.made}"


def once(domain: Any, maker: Any, fingerprint: bytes = PRINT, **call: Any) -> tuple[str, bool]:
    with db.transaction(domain.engine) as connection:
        return idempotency.once(connection, Call(domain.caller, "/v1/batches", **call), fingerprint, maker)


def age(domain: Any, interval: str) -> None:
    domain.execute(f"UPDATE calls SET created_at = created_at - interval '{interval}'")


def test_the_same_key_gives_the_same_object(domain: Any) -> None:
    maker = Maker()
    assert once(domain, maker, key="k") == ("object-1", True)
    assert once(domain, maker, key="k") == ("object-1", False)
    assert once(domain, maker, key="other") == ("object-2", True)


def test_the_same_key_for_something_else_is_refused(domain: Any) -> None:
    once(domain, Maker(), key="k")
    with pytest.raises(StateConflict) as caught:
        once(domain, Maker(), OTHER, key="k")
    assert caught.value.code == "idempotency_key_reused"


def test_a_key_is_forgotten_after_a_day(domain: Any) -> None:
    maker = Maker()
    once(domain, maker, key="k")
    age(domain, "23 hours")
    assert once(domain, maker, key="k") == ("object-1", False)
    age(domain, "2 hours")
    assert once(domain, maker, OTHER, key="k") == ("object-2", True)


def test_a_retry_of_the_sdk_is_the_call_that_it_repeats(domain: Any) -> None:
    maker = Maker()
    assert once(domain, maker) == ("object-1", True)
    assert once(domain, maker, is_retry=True) == ("object-1", False)
    assert once(domain, maker, OTHER, is_retry=True) == ("object-2", True)
    age(domain, "61 minutes")
    assert once(domain, maker, is_retry=True) == ("object-3", True)


def test_two_equal_first_calls_are_two(domain: Any) -> None:
    maker = Maker()
    assert [once(domain, maker)[0] for _ in range(2)] == ["object-1", "object-2"]
    assert once(domain, maker, is_retry=True) == ("object-2", False)


def test_a_call_that_failed_can_be_made_again(domain: Any) -> None:
    def fail() -> str:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        once(domain, fail, key="k")
    assert once(domain, Maker(), key="k") == ("object-1", True)


def test_six_calls_at_once_make_one_object(domain: Any) -> None:
    seen: list[tuple[str, bool]] = []
    waiting = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"

    class Slow(Maker):
        def __call__(self) -> str:
            services.wait_until(lambda: len(domain.execute(waiting)) == 5, "the others wait for this one", 20)
            return super().__call__()

    maker = Slow()
    threads = [threading.Thread(target=lambda: seen.append(once(domain, maker, key="k"))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 6
    assert {object_id for object_id, _ in seen} == {"object-1"}
    assert [is_new for _, is_new in seen].count(True) == 1


def test_one_that_waits_for_a_call_that_fails_makes_the_object(domain: Any) -> None:
    waiting = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    seen: list[tuple[str, bool]] = []
    thread = threading.Thread(target=lambda: seen.append(once(domain, Maker(), key="k")))

    def fail() -> str:
        thread.start()
        services.wait_until(lambda: domain.execute(waiting), "the other waits for this one", 20)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        once(domain, fail, key="k")
    thread.join()
    assert seen == [("object-1", True)]


def test_old_calls_are_removed(domain: Any) -> None:
    once(domain, Maker(), key="k")
    age(domain, "25 hours")
    once(domain, Maker(), key="young")
    with db.transaction(domain.engine) as connection:
        idempotency.forget(connection)
    assert [row.key for row in domain.execute("SELECT key FROM calls")] == ["key /v1/batches young"]
