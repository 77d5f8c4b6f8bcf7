"""Runs the migrations: one at a time (advisory lock), each in its own transaction, never waiting long for a lock."""

import time

from alembic import context
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from jobs import db, settings
from jobs.errors import Unavailable
from jobs.failpoints import failpoint
from jobs.tables import metadata

# Any constant will do, as long as nothing else locks on it.
LOCK = 0x70726D6C  # "prml"
LOOK_SECONDS = 0.2


def run() -> None:
    """Bring the database of `PROMPTMILL_DATABASE_URL`, or of the connection handed over, to the wanted revision."""
    connection = context.config.attributes.get("connection")
    if connection is not None:
        _migrate(connection)
        return
    engine = db.make_engine(settings.load().database_url.get_secret_value(), connections=1)
    try:
        with engine.connect() as connection:
            _migrate(connection)
    except DBAPIError as error:
        if error.connection_invalidated or isinstance(error.orig, db.TRANSIENT):
            raise Unavailable("Postgres cannot be migrated now.") from error.orig
        raise
    finally:
        engine.dispose()


def _migrate(connection: object) -> None:
    context.configure(
        connection=connection,
        target_metadata=metadata,
        transaction_per_migration=True,
        compare_type=True,
        compare_server_default=False,
        on_version_apply=lambda **_: failpoint("migration.before_commit"),
    )
    # Another migration may take its time, longer than any statement of ours.
    while not connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": LOCK}).scalar_one():
        connection.rollback()
        time.sleep(LOOK_SECONDS)
    try:
        # The deploy that waits for a lock makes everybody behind it wait as well; better to fail and be run again.
        connection.execute(text("SET lock_timeout = '2s'"))
        connection.execute(text("SET statement_timeout = '60s'"))
        connection.commit()
        with context.begin_transaction():
            context.run_migrations()
    finally:
        connection.rollback()
        connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": LOCK})
        # The lock is the session's: it is given back whatever becomes of the transaction.
        connection.rollback()


run()
