"""Connections to Postgres.

Domain functions take a `Connection` and never commit: who opened the transaction ends it.
No transaction is held while a client sends or reads, or while an engine runs.
"""

import random
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import psycopg
from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from jobs import metrics
from jobs.errors import Collision, InvalidRequest, OutcomeUnknown, Unavailable
from jobs.failpoints import failpoint

Answer = TypeVar("Answer")
Generated = TypeVar("Generated")

# Longest time that anybody waits for a connection of a pool.
WAIT_SECONDS = 5
LOCK_SECONDS = 10.0
IDLE_SECONDS = 60.0
# Of a statement's time, until its connection is given up: an answer of the server, that it cut the statement, is first.
PATIENCE = 1.25
_SESSION = {
    "application_name": "promptmill",
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}
_OPTIONS = (
    "-c statement_timeout={statement}ms -c lock_timeout={lock}ms "
    "-c idle_in_transaction_session_timeout={idle}ms -c TimeZone=UTC "
    # What is answered for is on disk, whatever the server's default is.
    "-c synchronous_commit=on "
    # The server, too, finds out that a client's machine is gone, and gives back its locks.
    "-c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3"
)
# Lost connections, time-outs, deadlocks, a full disk, a server that is read-only after a failover, a transaction that
# the server gave up.
TRANSIENT = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    psycopg.errors.ReadOnlySqlTransaction,
    psycopg.errors.IdleInTransactionSessionTimeout,
    psycopg.errors.TransactionTimeout,
)
_COLLISIONS = (psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected)
# The server says that it goes away, or that this connection does (class 57, "operator intervention").
_GOING_AWAY = "57P"


def make_engine(
    url: str, *, connections: int, statement_seconds: float = 60, idle_seconds: float = IDLE_SECONDS
) -> Engine:
    """Return a pool of at most `connections` connections to `url`; nothing is opened yet.

    No statement takes longer than `statement_seconds`, and none waits longer than `LOCK_SECONDS` for a lock. A
    transaction that does nothing for `idle_seconds`, since its process stands still, is ended, and its locks with it.
    """
    options = _OPTIONS.format(
        statement=int(1_000 * statement_seconds),
        lock=int(1_000 * min(LOCK_SECONDS, statement_seconds)),
        idle=int(1_000 * idle_seconds),
    )
    engine = create_engine(
        make_url(url).set(drivername="postgresql+psycopg"),
        pool_size=connections,
        max_overflow=0,
        pool_timeout=WAIT_SECONDS,
        pool_pre_ping=True,
        connect_args={**_SESSION, "options": options},
        hide_parameters=True,
    )
    answering = _answering(PATIENCE * statement_seconds)
    event.listen(engine, "do_connect", lambda _dialect, _record, args, named: answering.connect(*args, **named))
    event.listen(engine, "handle_error", _discard_broken)
    return engine


def _answering(seconds: float) -> type[psycopg.Connection[Any]]:
    """Return connections that are given up when the server says nothing for `seconds`.

    The system's own time-outs only find out that a machine is gone. A proxy in between that lost the other side, and a
    server whose disk hangs, take what is sent and never answer.
    """

    class Answering(psycopg.Connection[Any]):
        def wait(
            self, gen: Generator[Any, Any, Generated], interval: float = 0.1, timeout: float | None = None
        ) -> Generated:
            try:
                return super().wait(gen, interval, seconds if timeout is None else timeout)
            except psycopg.errors._WaitTimeout as error:  # noqa: SLF001  psycopg has no public name for it
                # An answer that comes now would be taken for that of the next statement.
                self.pgconn.finish()
                message = "The server does not answer."
                raise psycopg.errors.ConnectionTimeout(message) from error

    return Answering


def _discard_broken(context: Any) -> None:  # noqa: ANN401  SQLAlchemy's ExceptionContext is not exported
    if isinstance(context.original_exception, psycopg.OperationalError | psycopg.InterfaceError):
        context.is_disconnect = context.is_disconnect or context.connection is None


# Until the transaction ends. Migration 0009 says what the role may see, 0013 what is noted about the key.
_LIMIT_TO_PROJECT = text(
    "SELECT set_config('role', 'promptmill_tenant', true), set_config('promptmill.project', :project_id, true), "
    "set_config('promptmill.key', :key_id, true)"
)


@contextmanager
def transaction(
    engine: Engine, project_id: str | None = None, *, key_id: str = "", point: str | None = None
) -> Iterator[Connection]:
    """Open one transaction; it is committed at the end of the block, or rolled back by an exception.

    With `project_id`, Postgres shows and takes rows of that project only, whatever the statements say. What is done is
    noted as done by the key with the id `key_id`, or else by who is logged in to Postgres. `point` names its
    failpoints, `<point>.before_commit` and `<point>.after_commit`; all that is not a test has one.

    Raises:
        Unavailable: Postgres is away, full or too busy, or the connection broke. Nothing was done, unless it is
            `OutcomeUnknown`: read again before writing again.
        InvalidRequest: a string holds what Postgres has no room for: a NUL character, half a surrogate pair.
    """
    with _in_our_words() as stage, engine.begin() as connection:
        stage.broken = Collision
        _limit(connection, project_id, key_id)
        yield connection
        if point is not None:
            failpoint(f"{point}.before_commit")
        stage.broken = OutcomeUnknown
    if point is not None:
        failpoint(f"{point}.after_commit")


@contextmanager
def reading(engine: Engine, project_id: str | None = None) -> Iterator[Connection]:
    """Open one transaction in which Postgres lets nothing be written; otherwise as `transaction`.

    Raises:
        Unavailable: as `transaction`, and never `OutcomeUnknown`.
        InvalidRequest: as `transaction`.
    """
    with _in_our_words() as stage, engine.connect() as connection:
        stage.broken = Collision
        connection.execution_options(postgresql_readonly=True)
        _limit(connection, project_id)
        yield connection


def _limit(connection: Connection, project_id: str | None, key_id: str = "") -> None:
    if project_id is not None:
        connection.execute(_LIMIT_TO_PROJECT, {"project_id": project_id, "key_id": key_id})


@dataclass
class _Stage:
    """How far a transaction has come."""

    broken: type[Unavailable] = Unavailable
    """What it means if the connection breaks now."""


@contextmanager
def _in_our_words() -> Iterator[_Stage]:
    """Raise errors of ours in place of the driver's."""
    stage = _Stage()
    try:
        yield stage
    except PoolTimeoutError as error:
        _count(error)
        raise Unavailable from error
    except DBAPIError as error:
        if error.connection_invalidated or isinstance(error.orig, TRANSIENT):
            _count(error)
            raise _kind(error.orig, stage.broken) from error
        if isinstance(error.orig, psycopg.DataError) and error.orig.sqlstate is None:
            message = "A parameter holds a NUL character."
            raise InvalidRequest(message) from None
        raise
    except UnicodeEncodeError:
        message = "A parameter is not valid Unicode."
        raise InvalidRequest(message) from None
    except TRANSIENT as error:
        # From COPY, which goes past SQLAlchemy.
        _count(error)
        raise _kind(error, stage.broken) from error


def _kind(error: BaseException | None, broken: type[Unavailable]) -> type[Unavailable]:
    """Return what an error means: `broken` if the connection is gone, else what the server said of the transaction."""
    sqlstate = getattr(error, "sqlstate", None)
    if sqlstate is None or sqlstate.startswith(_GOING_AWAY):
        has_waited = isinstance(error, psycopg.errors.ConnectionTimeout)
        return Unavailable if has_waited and broken is Collision else broken
    return Collision if isinstance(error, _COLLISIONS) else Unavailable


def _count(error: BaseException) -> None:
    metrics.DATABASE_ERRORS.labels(reason(error)).inc()


def reason(error: BaseException) -> str:
    """Return what was behind an error, for the log: the driver's class, `DiskFull`, say. Its words may quote rows."""
    cause = error.__cause__ or error
    return type(getattr(cause, "orig", None) or cause).__name__


def retrying(
    engine: Engine, work: Callable[[Connection], Answer], *, point: str | None = None, tries: int = 5
) -> Answer:
    """Run `work` in a transaction of its own, again as a whole after a transient error, with jitter.

    `work` must be idempotent: after a broken COMMIT it may already be done.

    Raises:
        Unavailable: of the last of `tries`.
    """
    return _repeat(lambda: transaction(engine, point=point), work, tries, Unavailable)


def once(
    engine: Engine,
    work: Callable[[Connection], Answer],
    project_id: str | None = None,
    *,
    key_id: str = "",
    point: str | None = None,
) -> Answer:
    """Run `work` once in a transaction; what collided with others, or lost its connection before COMMIT, runs again.

    For callers that wait: what has already waited, for a lock or for an answer, is not tried again.

    Raises:
        Unavailable: as `transaction`.
    """
    return _repeat(lambda: transaction(engine, project_id, key_id=key_id, point=point), work, 3, Collision)


def read(engine: Engine, work: Callable[[Connection], Answer], project_id: str | None = None) -> Answer:
    """Run `work`, which writes nothing, as `once`.

    Raises:
        Unavailable: as `transaction`.
    """
    return _repeat(lambda: reading(engine, project_id), work, 3, Collision)


def _repeat(
    opened: Callable[[], AbstractContextManager[Connection]],
    work: Callable[[Connection], Answer],
    tries: int,
    after: type[Unavailable],
) -> Answer:
    for attempt in range(1, tries + 1):
        try:
            with opened() as connection:
                return work(connection)
        except after:
            if attempt == tries:
                raise
            time.sleep(random.uniform(0, 0.1 * 2**attempt))  # noqa: S311  jitter needs no secrecy
    raise AssertionError


def driver(connection: Connection) -> psycopg.Connection[Any]:
    """Return psycopg's connection under SQLAlchemy's, for COPY. It stays in the same transaction."""
    raw = connection.connection.driver_connection
    assert isinstance(raw, psycopg.Connection)
    return raw
