"""Sets the clock of a test database forward: `python tests/conformance_clock.py SECONDS`; 0 makes it right again.

Every session has the new time with its next statement, unlike with the setting that `app_now()` reads, which only new
sessions see. The database is the one that $PROMPTMILL_TEST_CLOCK_DATABASE_URL names.
"""

import os
import sys

import psycopg

URL_VARIABLE = "PROMPTMILL_TEST_CLOCK_DATABASE_URL"

if __name__ == "__main__":
    seconds = int(sys.argv[1])
    with psycopg.connect(os.environ[URL_VARIABLE]) as connection:
        connection.execute(
            "CREATE OR REPLACE FUNCTION app_now() RETURNS timestamptz LANGUAGE sql STABLE AS "
            f"$$ SELECT statement_timestamp() + make_interval(secs => {seconds}) $$"
        )
