"""An engine that fails with nothing aboard is started less and less often, on its host only."""

from typing import Any

from jobs import breakers, db
from jobs.settings import Worker


def fail(domain: Any, hostname: str = "here", models: tuple[str, ...] = ("base", "adapter")) -> None:
    with db.transaction(domain.engine) as connection:
        breakers.note_failure(connection, hostname, models, Worker())


def is_open(domain: Any, hostname: str = "here", model: str = "base") -> bool:
    with db.transaction(domain.engine) as connection:
        return breakers.seconds_open(connection, hostname, [model]) > 0


def wait(domain: Any) -> float | None:
    """Return for how long the last failure opened the breaker, seconds."""
    statement = "SELECT extract(epoch FROM open_until - failed_at)::float FROM breakers WHERE model = 'base'"
    seconds: float | None = domain.execute(statement)[0][0]
    return seconds


def test_from_the_third_failure_on_each_wait_is_twice_as_long_up_to_five_minutes(domain: Any) -> None:
    waits = []
    for _ in range(9):
        fail(domain)
        waits.append(wait(domain))
    assert waits == [None, None, 10, 20, 40, 80, 160, 300, 300]


def test_a_breaker_is_of_one_host_and_of_each_model_of_its_engine(domain: Any) -> None:
    for _ in range(8):
        fail(domain)
    assert is_open(domain, model="adapter")
    assert not is_open(domain, model="another")
    assert not is_open(domain, "elsewhere")


def test_a_host_on_which_nothing_failed_for_a_day_is_forgotten(domain: Any) -> None:
    fail(domain, "gone")
    domain.execute("UPDATE breakers SET failed_at = app_now() - interval '25 hours'")
    fail(domain, "here")
    fail(domain, "waits")
    domain.execute(
        "UPDATE breakers SET failed_at = app_now() - interval '25 hours', open_until = app_now() + interval '1 hour' "
        "WHERE hostname = 'waits'"
    )
    with db.transaction(domain.engine) as connection:
        breakers.forget(connection, keep_seconds=86_400)
    assert domain.execute("SELECT DISTINCT hostname FROM breakers ORDER BY 1") == [("here",), ("waits",)]


def test_a_row_that_runs_closes_it(domain: Any) -> None:
    for _ in range(8):
        fail(domain)
    with db.transaction(domain.engine) as connection:
        breakers.close(connection, "here", ["base", "adapter"])
    assert not is_open(domain)
    fail(domain)
    assert wait(domain) is None, "it counts from the beginning"
