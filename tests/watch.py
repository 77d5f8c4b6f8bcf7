"""What tests have in a database beside the product's tables: it notes each result whose lease had ended when it came.

An error would not do: the worker takes one for a lost lease, and the test would pass. So the row is written as if nobody
looked, and `invariants.check` (I5) asks for the notes. Two kinds of results are not a holder's: those of requests that
never ran, and `engine_crashed`, which comes when the attempts are over.
"""

from sqlalchemy import Connection, text

_WATCH = """
CREATE SCHEMA IF NOT EXISTS watch;
CREATE TABLE IF NOT EXISTS watch.stale_results (batch_id text, line_no integer, lease_token bigint);

-- As its owner: the users of the processes may not write here.
CREATE OR REPLACE FUNCTION watch.note_stale_results() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public AS $$
BEGIN
    INSERT INTO watch.stale_results
    SELECT w.batch_id, w.line_no, w.lease_token FROM written w
    WHERE w.status_code IS NOT NULL AND NOT EXISTS (
        SELECT FROM shards s
        WHERE s.batch_id = w.batch_id AND w.line_no BETWEEN s.first_line AND s.last_line
          AND s.model_no = (SELECT model_no FROM requests r WHERE r.batch_id = w.batch_id AND r.line_no = w.line_no)
          AND s.state = 'running' AND s.lease_token = w.lease_token
          AND (w.code = 'engine_crashed' OR EXISTS (
              SELECT FROM attempts a
              WHERE a.shard_id = s.id AND a.lease_token = s.lease_token AND a.ended_at IS NULL)));
    RETURN NULL;
END $$;
CREATE OR REPLACE TRIGGER stale_results_are_noted AFTER INSERT ON results
    REFERENCING NEW TABLE AS written FOR EACH STATEMENT EXECUTE FUNCTION watch.note_stale_results()
"""


def install(connection: Connection) -> None:
    """Watch the results of this database from now on. It may be watched already."""
    connection.execute(text(_WATCH))
