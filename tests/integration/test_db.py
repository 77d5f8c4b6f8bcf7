from collections.abc import Callable
from typing import Any

import proxies
import pytest
from proxies import TOXICS
from sqlalchemy import text

from jobs import db
from jobs.errors import Collision, InvalidRequest, OutcomeUnknown, Unavailable


def test_a_statement_cut_short_is_unavailable(engine: Any) -> None:
    with pytest.raises(Unavailable), db.transaction(engine) as connection:
        connection.execute(text("SET LOCAL statement_timeout = '50ms'"))
        connection.execute(text("SELECT pg_sleep(5)"))


def test_a_copy_cut_short_is_unavailable_too(engine: Any) -> None:
    """COPY goes past SQLAlchemy; its errors once made the writer drop what was finished."""
    with pytest.raises(Unavailable), db.transaction(engine) as connection:
        connection.execute(text("SET LOCAL statement_timeout = '50ms'"))
        with db.driver(connection).cursor().copy("COPY (SELECT pg_sleep(5)) TO STDOUT") as copy:
            list(copy)


def test_a_server_that_only_reads_is_unavailable(engine: Any) -> None:
    with pytest.raises(Unavailable), db.transaction(engine) as connection:
        connection.execute(text("SET LOCAL transaction_read_only = on"))
        connection.execute(text("INSERT INTO projects (id, name) VALUES ('a', 'a')"))


def test_a_reading_transaction_cannot_write(engine: Any) -> None:
    write = text("INSERT INTO projects (id, name) VALUES ('a', 'a')")
    with pytest.raises(Unavailable), db.reading(engine) as connection:
        connection.execute(write)
    # Whoever gets the connection next may.
    with db.transaction(engine) as connection:
        connection.execute(write)
    with db.reading(engine) as connection:
        assert connection.execute(text("SELECT count(*) FROM projects")).scalar_one() == 1


def test_a_connection_that_was_killed_is_replaced(engine: Any) -> None:
    with pytest.raises(Unavailable), db.transaction(engine) as connection:
        connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
    with db.transaction(engine) as connection:
        assert connection.execute(text("SELECT 1")).scalar_one() == 1


def test_transient_errors_are_retried_as_a_whole(engine: Any) -> None:
    tries = []

    def work(connection: Any) -> int:
        tries.append(connection)
        if len(tries) < 3:
            connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
        return len(tries)

    assert db.retrying(engine, work) == 3


def test_null_characters_are_the_callers_mistake(engine: Any) -> None:
    with pytest.raises(InvalidRequest), db.transaction(engine) as connection:
        connection.execute(text("SELECT :value"), {"value": "a\0b"})


def test_a_pool_that_is_used_up_is_unavailable(database_url: str) -> None:
    engine = db.make_engine(database_url, connections=1)
    engine.pool._timeout = 0.1  # type: ignore[attr-defined]
    with db.transaction(engine), pytest.raises(Unavailable), db.transaction(engine):
        pass
    engine.dispose()


def write(tries: list[int]) -> Callable[[Any], None]:
    def work(connection: Any) -> None:
        tries.append(1)
        connection.execute(text("INSERT INTO projects (id, name) VALUES ('a', 'a')"))

    return work


def test_a_commit_without_an_answer_is_not_repeated_by_those_who_must_not(engine: Any, database_url: str) -> None:
    """F44."""
    tries: list[int] = []
    with proxies.serving(database_url) as line:
        through = db.make_engine(line.url, connections=1)
        line.cut_commit(b"INSERT INTO projects")
        with pytest.raises(OutcomeUnknown):
            db.once(through, write(tries))
        through.dispose()
    assert len(tries) == 1
    with engine.connect() as connection:
        assert connection.execute(text("SELECT id FROM projects")).scalar_one() == "a"


def test_a_connection_that_breaks_before_commit_is_tried_again(engine: Any) -> None:
    tries: list[int] = []

    def work(connection: Any) -> None:
        write(tries)(connection)
        if len(tries) == 1:
            connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

    db.once(engine, work)
    assert len(tries) == 2


def test_what_collides_every_time_is_given_up(engine: Any) -> None:
    tries: list[int] = []

    def work(connection: Any) -> None:
        tries.append(1)
        connection.execute(text("DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '40001'; END $$"))

    with pytest.raises(Collision):
        db.once(engine, work)
    assert len(tries) == 3


@pytest.mark.parametrize("pings", [True, False], ids=["before a transaction", "in a transaction"])
def test_a_server_that_does_not_answer_is_given_up(database_url: str, pings: bool) -> None:
    """Half-open: what is sent is taken, and nothing comes back."""
    with proxies.serving(database_url) as line:
        through = db.make_engine(line.url, connections=1, statement_seconds=0.5)
        through.pool._pre_ping = pings
        with db.transaction(through) as connection:
            connection.execute(text("SELECT 1"))
        line.poison(TOXICS["half-open"])
        with pytest.raises(Unavailable) as refused, db.transaction(through) as connection:
            connection.execute(text("SELECT 1"))
        assert refused.type is Unavailable, "it has waited once"
        assert db.reason(refused.value) == "ConnectionTimeout"
        line.poison(proxies.GOOD)
        with db.transaction(through) as connection:
            assert connection.execute(text("SELECT 1")).scalar_one() == 1
        through.dispose()


def test_a_transaction_that_stands_still_gives_back_its_locks(engine: Any, database_url: str) -> None:
    still = db.make_engine(database_url, connections=1, idle_seconds=0.2)
    with pytest.raises(Unavailable), db.transaction(still) as connection:
        connection.execute(text("LOCK TABLE projects"))
        with db.transaction(engine) as other:
            other.execute(text("LOCK TABLE projects"))
        connection.execute(text("SELECT 1"))
    still.dispose()
