"""What must hold after every test, whatever happened in it; checked over the database and the files.

    I1   what was acknowledged is there, with its bytes and their hash
    I2   each request of a batch has at most one result, and exactly one when the batch has ended; counters add up
    I3   a result that was seen stays as it is
    I4   only legal transitions: triggers of the database, which are there and on
    I5   no token that falls, and no result of a lease that had ended: triggers too, the second one of tests only
    I6   what belongs to a batch or an upload belongs to its project
    I7   the lines of the output and the error file are the requests, by custom_id
    I8   every batch has ended, if the test waited for all of them
    I9   nobody has a lease but who is running; no lines without a file; no process that one of ours left behind
    I10  as many attempts as claims, no result of an attempt that was never made, no more deaths of a request than it may
         cause, and nothing aboard of a lease whose outcomes were there before it

The hash of I7 is not compared: result files have none, their lines are the rows themselves.
"""

import hashlib
import os
from collections.abc import Mapping
from typing import Any

import psutil
import services
from payloads import parse
from sqlalchemy import Connection, Engine, text

from jobs import content, ids
from jobs.settings import Shards
from jobs.states import TERMINAL

# Files that are read again, to see that their hash is that of their lines.
MAX_HASHED_BYTES = 20_000_000
# What was there: the lines of results by batch and line number.
Seen = Mapping[tuple[str, int], bytes]
# What a client read: lines of result files by file.
Read = Mapping[str, set[bytes]]

# Each asks for rows that must not be there.
NEVER: dict[str, str] = {
    "I5: no result came when its lease had ended": """
        SELECT batch_id, line_no, lease_token FROM watch.stale_results""",
    "I2: every result is one of a request": """
        SELECT x.batch_id, x.line_no FROM results x LEFT JOIN requests r USING (batch_id, line_no)
        WHERE r.batch_id IS NULL""",
    "I2: the counters of a shard are its rows": """
        SELECT s.id FROM shards s CROSS JOIN LATERAL (
            SELECT count(*) FILTER (WHERE NOT x.is_error) AS completed, count(*) FILTER (WHERE x.is_error) AS failed
            FROM results x JOIN requests r USING (batch_id, line_no)
            WHERE x.batch_id = s.batch_id AND x.line_no BETWEEN s.first_line AND s.last_line AND r.model_no = s.model_no
        ) AS there
        WHERE (s.completed, s.failed) <> (there.completed, there.failed)
          AND NOT EXISTS (SELECT FROM files f WHERE f.batch_id = s.batch_id AND f.sweep_began_at IS NOT NULL)""",
    "I6: a result file is its batch's project's": """
        SELECT f.id FROM files f JOIN batches b ON b.id = f.batch_id WHERE f.project_id <> b.project_id""",
    "I6: a message is its batch's and its endpoint's project's": """
        SELECT d.id FROM webhook_deliveries d JOIN batches b ON b.id = d.batch_id
        JOIN webhook_endpoints e ON e.id = d.endpoint_id
        WHERE d.project_id <> b.project_id OR d.project_id <> e.project_id""",
    "I6: the file of an upload is its project's": """
        SELECT u.id FROM uploads u JOIN files f ON f.id = u.file_id WHERE u.project_id <> f.project_id""",
    "I9: who has an open attempt has the lease": """
        SELECT a.shard_id FROM attempts a JOIN shards s ON s.id = a.shard_id
        WHERE a.ended_at IS NULL AND (s.state <> 'running' OR s.lease_token <> a.lease_token)""",
    "I9: who has a lease has an open attempt": """
        SELECT s.id FROM shards s WHERE s.state = 'running' AND NOT EXISTS (
            SELECT FROM attempts a WHERE a.shard_id = s.id AND a.lease_token = s.lease_token AND a.ended_at IS NULL)""",
    "I9: a batch that has ended has no open shard": """
        SELECT s.id FROM shards s JOIN batches b ON b.id = s.batch_id
        WHERE b.status IN ('completed', 'expired', 'cancelled', 'failed') AND s.state <> 'done'""",
    "I9: every line is one of a file": """
        SELECT there.file_id FROM (SELECT DISTINCT file_id FROM lines) AS there LEFT JOIN files f ON f.id = there.file_id
        WHERE f.id IS NULL OR f.swept_at IS NOT NULL""",
    "I10: each claim is an attempt": """
        SELECT s.id FROM shards s LEFT JOIN attempts a ON a.shard_id = s.id GROUP BY s.id
        HAVING count(a.lease_token) > s.lease_token OR coalesce(max(a.lease_token), 0) > s.lease_token
            -- The token of a suspect also rises when nobody may run it for a while.
            OR (s.suspect_since IS NULL AND s.lease_token <> count(a.lease_token))""",
    "I5, I10: a result is of an attempt that was made": """
        SELECT x.batch_id, x.line_no FROM results x JOIN requests r USING (batch_id, line_no)
        JOIN shards s ON s.batch_id = x.batch_id AND r.model_no = s.model_no
                     AND x.line_no BETWEEN s.first_line AND s.last_line
        WHERE x.lease_token > s.lease_token OR (x.lease_token < 1 AND x.status_code IS NOT NULL)""",
    # The last row that a lease may have started had no outcome when it was claimed.
    "I10: what is committed is not run again": """
        SELECT a.shard_id, a.lease_token FROM attempts a JOIN shards s ON s.id = a.shard_id
        WHERE a.aboard_line >= s.first_line
          AND NOT EXISTS (SELECT FROM files f WHERE f.batch_id = s.batch_id AND f.sweep_began_at IS NOT NULL)
          AND NOT EXISTS (
            SELECT FROM requests r LEFT JOIN results x USING (batch_id, line_no)
            WHERE r.batch_id = s.batch_id AND r.model_no = s.model_no
              AND r.line_no BETWEEN s.first_line AND least(s.last_line, a.aboard_line)
              AND (x.lease_token IS NULL OR x.lease_token >= a.lease_token))""",
}
# Deaths are counted as `jobs.suspects` does: not those of workers that were seen afterwards.
_TOO_MANY_DEATHS = text(
    """
    SELECT s.id FROM shards s JOIN attempts a ON a.shard_id = s.id AND a.lease_token > s.suspect_since
    LEFT JOIN workers w ON w.id = a.worker_id AND w.seen_at > a.ended_at
    WHERE s.total = 1 AND (a.end_reason = 'died' OR a.end_reason = 'lost' AND w.id IS NULL)
    GROUP BY s.id HAVING count(*) > :most
    """
)
_OPEN = text("SELECT id FROM batches WHERE status NOT IN ('completed', 'expired', 'cancelled', 'failed')")
# Results go with the files that show them.
_UNSWEPT = text(
    "SELECT id, status FROM batches b "
    "WHERE NOT EXISTS (SELECT FROM files f WHERE f.batch_id = b.id AND f.sweep_began_at IS NOT NULL)"
)
# The end of such a write, as it is logged.
RUN_AGAIN = ('"UniqueViolation"', '"write_failed"')
RULES = {
    "batch_transitions_are_legal",
    "shard_transitions_are_legal",
    "results_are_final",
    # Of tests only (watch.py).
    "stale_results_are_noted",
}


def check(
    engine: Engine,
    *,
    acknowledged: Mapping[str, bytes] | None = None,
    seen: Seen | None = None,
    read: Read | None = None,
    settled: bool = False,
    most_deaths: int = Shards().most_deaths,
) -> None:
    """Check everything in the database.

    Args:
        engine: of the database.
        acknowledged: the bytes of files that a client was told are there, and which nobody deleted, by id.
        seen: what `snapshot` returned earlier.
        read: the lines that clients read, by result file.
        settled: all batches have been waited for.
        most_deaths: the setting of that name.
    """
    with engine.connect() as connection:
        _check_rules(connection)
        for rule, statement in NEVER.items():
            assert connection.execute(text(statement)).all() == [], rule
        assert connection.execute(_TOO_MANY_DEATHS, {"most": most_deaths}).all() == [], "I10: no death too many"
        assert not settled or connection.execute(_OPEN).all() == [], "I8: every batch has ended"
        _check_hashes(connection)
        _check_acknowledged(connection, acknowledged or {})
        _check_read(connection, read or {})
        batches = connection.execute(_UNSWEPT).all()
    for batch in batches:
        if batch.status in TERMINAL and batch.status != "failed":
            _check_ended(engine, batch.id)
    if seen:
        assert seen.items() <= snapshot(engine).items(), "I3: what was seen stays as it is"


def check_stack(stack: services.Stack, *, seen: Seen | None = None) -> None:
    """Check the database of a stack, by what its clients were told and saw, and what its processes left."""
    most_deaths = stack.settings.get("PROMPTMILL_SHARDS__MOST_DEATHS", Shards().most_deaths)
    engine = stack.engine()
    try:
        check(
            engine,
            acknowledged=stack.acknowledged,
            seen=seen,
            read=stack.read,
            settled=not stack.leaves_open,
            most_deaths=int(most_deaths),
        )
    finally:
        engine.dispose()
    assert run_again(stack) == [], "I10: what is committed is not run again"
    # A process whose worker was killed ends soon after it.
    services.wait_until(lambda: not orphans(stack), "I9: nothing of a process that has ended runs", 30)


def run_again(stack: services.Stack) -> list[str]:
    """Return what workers logged that brought an outcome which was there already."""
    lines = [line for process in stack.processes for line in process.log.read_text(errors="replace").splitlines()]
    return [line for line in lines if all(word in line for word in RUN_AGAIN)]


def orphans(stack: services.Stack) -> list[int]:
    """Return what runs of processes that have ended: each of ours began a session, to which its children belong."""
    ended = {process.popen.pid for process in stack.processes if process.popen.poll() is not None}
    return [pid for pid in psutil.pids() if _session(pid) in ended]


def _session(pid: int) -> int | None:
    try:
        # One that has ended and that nobody has asked for yet is no harm.
        return None if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE else os.getsid(pid)
    except (psutil.NoSuchProcess, ProcessLookupError):
        return None


def snapshot(engine: Engine) -> dict[tuple[str, int], bytes]:
    """Return the results that there are by now, as clients may have seen them."""
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT batch_id, line_no, content FROM results"))
        return {(row.batch_id, row.line_no): bytes(row.content) for row in rows}


def _check_rules(connection: Connection) -> None:
    enabled = text("SELECT tgname FROM pg_trigger WHERE tgname = ANY(:names) AND tgenabled IN ('O', 'A')")
    assert set(connection.execute(enabled, {"names": list(RULES)}).scalars()) == RULES, "I4, I5: the rules are on"


def _check_hashes(connection: Connection) -> None:
    """I1: every uploaded file that is there is whole."""
    rows = connection.execute(
        text(
            "SELECT f.id, f.bytes, f.sha256, (SELECT sha256(string_agg(content, '' ORDER BY line_no)) FROM lines l "
            "WHERE l.file_id = f.id) AS is_now FROM files f WHERE f.status = 'processed' AND f.batch_id IS NULL "
            "AND f.sweep_began_at IS NULL AND f.bytes <= :most"
        ),
        {"most": MAX_HASHED_BYTES},
    )
    for row in rows:
        assert _bytes(row.is_now) == _bytes(row.sha256), f"I1: {row.id} is whole"


def _bytes(value: Any) -> bytes | None:
    return None if value is None else bytes(value)


def _check_acknowledged(connection: Connection, acknowledged: Mapping[str, bytes]) -> None:
    there = text("SELECT sha256 FROM files WHERE id = :id AND status = 'processed' AND deleted_at IS NULL")
    for file_id, data in acknowledged.items():
        found = connection.execute(there, {"id": file_id}).scalar_one_or_none()
        assert _bytes(found) == hashlib.sha256(data).digest(), f"I1: {file_id} is there, and is what was sent"


def _check_read(connection: Connection, read: Read) -> None:
    statement = text("SELECT content FROM results WHERE batch_id = :id AND is_error = :is_error")
    for file_id, lines in read.items():
        found = ids.parse_result_file_id(file_id)
        assert found, f"{file_id} is a result file"
        values = {"id": found[0], "is_error": found[1] == "error"}
        there = {bytes(content) for content in connection.execute(statement, values).scalars()}
        assert lines <= there, f"I3: what was read of {file_id} stays as it is"


def _check_ended(engine: Engine, batch_id: str) -> None:
    """I2, I7: each request of a batch that has ended is a line of one of its files."""
    with engine.connect() as connection:
        asked = connection.execute(text("SELECT custom_id FROM requests WHERE batch_id = :id"), {"id": batch_id})
        wanted = list(asked.scalars())
        files = connection.execute(text("SELECT id, bytes FROM files WHERE batch_id = :id"), {"id": batch_id})
        published = {file.id: file.bytes for file in files}
    seen: list[str] = []
    for kind in ids.RESULT_KINDS:
        file_id = ids.result_file_id(batch_id, kind)
        data = b"".join(content.stream(engine, content.Source(file_id, batch_id, is_error=kind == "error")))
        assert published.get(file_id, 0) == len(data), "I7: the file's size is what is in it"
        seen += [row["custom_id"] for row in parse(data)]
    assert sorted(seen) == sorted(wanted), "I7: every custom_id exactly once"
