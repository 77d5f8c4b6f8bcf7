"""Connections to Postgres.

Domain functions take a `Connection` and never commit: who opened the transaction ends it.
No transaction is held while a client sends or reads, or while an engine runs.
"""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg
from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from jobs.errors import InvalidRequest, Unavailable

Answer = TypeVar("Answer")

# Bounds for every statement of ours; the slowest creates a batch of 50,000 requests.
SESSION = {
    "application_name": "promptmill",
    "connect_timeout": 5,
    "options": "-c statement_timeout=60s -c lock_timeout=10s "
    "-c idle_in_transaction_session_timeout=60s -c TimeZone=UTC "
    # The server, too, finds out that a client's machine is gone, and gives back its locks.
    "-c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3",
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}
# Lost connections, time-outs, deadlocks, a full disk, a server that is read-only after a failover.
TRANSIENT = (psycopg.OperationalError, psycopg.InterfaceError, psycopg.errors.ReadOnlySqlTransaction)


def make_engine(url: str, *, connections: int) -> Engine:
    """Return a pool of at most `connections` connections to `url`; nothing is opened yet."""
    engine = create_engine(
        make_url(url).set(drivername="postgresql+psycopg"),
        pool_size=connections,
        max_overflow=0,
        pool_timeout=5,
        pool_pre_ping=True,
        connect_args=SESSION,
        hide_parameters=True,
    )
    event.listen(engine, "handle_error", _discard_broken)
    return engine


def _discard_broken(context: Any) -> None:  # noqa: ANN401  SQLAlchemy's ExceptionContext is not exported
    if isinstance(context.original_exception, psycopg.OperationalError | psycopg.InterfaceError):
        context.is_disconnect = context.is_disconnect or context.connection is None


# Until the transaction ends. Migration 0009 says what the role may see, 0013 what is noted about the key.
_LIMIT_TO_PROJECT = text(
    "SELECT set_config('role', 'promptmill_tenant', true), set_config('promptmill.project', :project_id, true), "
    "set_config('promptmill.key', :key_id, true)"
)


@contextmanager
def transaction(engine: Engine, project_id: str | None = None, *, key_id: str = "") -> Iterator[Connection]:
    """Open one transaction; it is committed at the end of the block, or rolled back by an exception.

    With `project_id`, Postgres shows and takes rows of that project only, whatever the statements say. What is done is
    noted as done by the key with the id `key_id`, or else by who is logged in to Postgres.

    Raises:
        Unavailable: Postgres is away, too busy, or the connection broke. After a COMMIT that broke the outcome is
            unknown: read again before writing again.
        InvalidRequest: a string holds what Postgres has no room for: a NUL character, half a surrogate pair.
    """
    try:
        with engine.begin() as connection:
            if project_id is not None:
                connection.execute(_LIMIT_TO_PROJECT, {"project_id": project_id, "key_id": key_id})
            yield connection
    except PoolTimeoutError as error:
        raise Unavailable from error
    except DBAPIError as error:
        if is_transient(error):
            raise Unavailable from error
        if isinstance(error.orig, psycopg.DataError) and error.orig.sqlstate is None:
            message = "A parameter holds a NUL character."
            raise InvalidRequest(message) from None
        raise
    except UnicodeEncodeError:
        message = "A parameter is not valid Unicode."
        raise InvalidRequest(message) from None
    except TRANSIENT as error:
        # From COPY, which goes past SQLAlchemy.
        raise Unavailable from error


def is_transient(error: DBAPIError) -> bool:
    """Tell whether the same transaction may succeed when it is run again."""
    return error.connection_invalidated or isinstance(error.orig, TRANSIENT)


def retrying(engine: Engine, work: Callable[[Connection], Answer], *, tries: int = 5) -> Answer:
    """Run `work` in a transaction of its own, again as a whole after a transient error, with jitter.

    `work` must be idempotent: after a broken COMMIT it may already be done.
    """
    for attempt in range(1, tries + 1):
        try:
            with transaction(engine) as connection:
                return work(connection)
        except Unavailable:
            if attempt == tries:
                raise
            time.sleep(random.uniform(0, 0.1 * 2**attempt))  # noqa: S311  jitter needs no secrecy
    raise AssertionError


def driver(connection: Connection) -> psycopg.Connection[Any]:
    """Return psycopg's connection under SQLAlchemy's, for COPY. It stays in the same transaction."""
    raw = connection.connection.driver_connection
    assert isinstance(raw, psycopg.Connection)
    return raw
