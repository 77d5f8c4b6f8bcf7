"""Has Postgres refuse writes, with any SQLSTATE, as often as a test wants."""

from sqlalchemy import Engine, text

# What a driver's error may quote; it may be in no log.
WORDS = "the words of the error"

# A sequence counts what is rolled back too.
_INSTALL = """
CREATE SEQUENCE refusals;
GRANT USAGE ON SEQUENCE refusals TO PUBLIC;
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF nextval('refusals') <= {times} THEN
        RAISE EXCEPTION '{words}' USING ERRCODE = '{sqlstate}';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER refuse AFTER INSERT OR UPDATE ON {table} FOR EACH STATEMENT EXECUTE FUNCTION refuse();
"""


def install(engine: Engine, table: str, sqlstate: str, *, times: int) -> None:
    """Refuse the next `times` statements that write into a table."""
    with engine.begin() as connection:
        connection.exec_driver_sql(_INSTALL.format(table=table, sqlstate=sqlstate, times=times, words=WORDS))


def count(engine: Engine) -> int:
    """Return how many statements came, refused or not."""
    with engine.begin() as connection:
        return int(connection.execute(text("SELECT last_value FROM refusals")).scalar_one())


def remove(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("DROP FUNCTION refuse CASCADE"))
        connection.execute(text("DROP SEQUENCE refusals"))
