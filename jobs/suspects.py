"""Finds the request that kills engines, and fails it alone.

    aboard    requests without an outcome, up to the mark of a lease (`leases.mark`) that ended with its engine's death
    1. the requests aboard become a shard of their own, a suspect; the others go back into the queue
    2. a suspect is run alone (`jobs.claims`). If the engine dies again, it is halved, and each half is a suspect
    3. a request that was alone for `most_deaths` deaths of an engine fails with `engine_crashed`
    4. a suspect that ends has cleared its requests; nothing is held against them

A worker whose engine died under it says so (`died`). Of a worker that was killed, or cut off from Postgres, only the
end of its leases is seen (`take_back`). Such an end is a death as long as the worker is not seen again: before a
request fails for it, its worker gets `grace_seconds` to show that it lives.

A drained worker releases its leases, and an engine that dies with nothing aboard is its host's trouble
(`jobs.breakers`): neither makes suspects.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, text

from jobs import ids, leases
from jobs.leases import Written
from jobs.outcomes import failure

# The batch first, as `jobs.lifecycle` does: new shards of it are numbered one after the other.
_LOCK_BATCH = text("SELECT FROM batches WHERE id = (SELECT batch_id FROM shards WHERE id = :id) FOR NO KEY UPDATE")
_LOCK_SHARD = text(
    """
    SELECT s.*, b.status = 'in_progress' AND b.expires_at > app_now() AS goes_on, s.lease_until < app_now() AS is_over
    FROM shards s JOIN batches b ON b.id = s.batch_id
    WHERE s.id = :id AND s.state = 'running' FOR UPDATE OF s
    """
)
_END_ATTEMPT = text(
    """
    UPDATE attempts SET ended_at = app_now(), end_reason = :reason,
        aboard_line = least(aboard_line, CAST(:started AS int))
    WHERE shard_id = :id AND lease_token = :token AND ended_at IS NULL
    RETURNING aboard_line
    """
)


def died(connection: Connection, held: leases.Held, started: int, *, most_deaths: int) -> str | None:
    """Give back a shard under which the engine died; return the state of what keeps its id, None if it was lost.

    Args:
        connection: its transaction makes suspects, new shards and a last outcome durable together.
        held: the lease of the worker that says so.
        started: the last line that the worker started. The mark of the lease may be further on.
        most_deaths: deaths of an engine after which a request that was alone with it fails.
    """
    shard = _lock(connection, held[0])
    if shard is None or shard.lease_token != held[1]:
        return None
    aboard_line = _end_attempt(connection, shard, "died", started)
    return _judge(connection, shard, aboard_line, most_deaths)


def lost(connection: Connection) -> list[str]:
    """Return the shards whose lease has ended; those with nothing aboard `leases.recover` takes back."""
    statement = text("SELECT id FROM shards WHERE state = 'running' AND lease_until < app_now() ORDER BY id")
    return list(connection.execute(statement).scalars())


def take_back(connection: Connection, shard_id: str, *, most_deaths: int, grace_seconds: float) -> str | None:
    """Take back a lease that has ended with rows aboard; return the shard's new state, None if it is none any more.

    The state is `running` for a request that is to fail: nobody runs it, this is called again after `grace_seconds`.
    """
    shard = _lock(connection, shard_id)
    if shard is None or not shard.is_over:
        return None
    has_waited = connection.execute(_IS_OPEN, {"id": shard.id, "token": shard.lease_token}).first() is None
    aboard_line = shard.last_line if has_waited else _end_attempt(connection, shard, "lost", None)
    return _judge(connection, shard, aboard_line, most_deaths, 0 if has_waited else grace_seconds)


_IS_OPEN = text("SELECT FROM attempts WHERE shard_id = :id AND lease_token = :token AND ended_at IS NULL")


def _lock(connection: Connection, shard_id: str) -> Row[Any] | None:
    connection.execute(_LOCK_BATCH, {"id": shard_id})
    return connection.execute(_LOCK_SHARD, {"id": shard_id}).one_or_none()


def _end_attempt(connection: Connection, shard: Row[Any], reason: str, started: int | None) -> int | None:
    values = {"id": shard.id, "token": shard.lease_token, "reason": reason, "started": started}
    line: int | None = connection.execute(_END_ATTEMPT, values).scalar_one_or_none()
    return line


def _judge(
    connection: Connection,
    shard: Row[Any],
    aboard_line: int | None,
    most_deaths: int,
    grace_seconds: float = 0,
) -> str | None:
    """Do to a shard whose attempt has ended what its death asks for; return its new state."""
    rows = _rows(connection, shard) if shard.goes_on else []
    missing = [row for row in rows if row.is_error is None]
    aboard = [row for row in missing if row.line_no <= (aboard_line or 0)]
    if not aboard:
        return leases.release(connection, shard.id, shard.lease_token)
    if shard.suspect_since is None:
        _split(connection, shard, rows, aboard[-1].line_no, suspect=False)
    elif len(missing) == 1:
        return _judge_one(connection, shard, aboard[0], most_deaths, grace_seconds)
    else:
        _split(connection, shard, rows, aboard[(len(aboard) - 1) // 2].line_no, suspect=True)
    connection.execute(_SUSPECT, {"id": shard.id})
    return leases.release(connection, shard.id, shard.lease_token)


_ROWS = text(
    """
    SELECT r.line_no, r.custom_id,
           (SELECT x.is_error FROM results x WHERE x.batch_id = r.batch_id AND x.line_no = r.line_no) AS is_error
    FROM requests r
    WHERE r.batch_id = :batch_id AND r.line_no BETWEEN :first_line AND :last_line AND r.model_no = :model_no
    ORDER BY r.line_no
    """
)
_SUSPECT = text("UPDATE shards SET suspect_since = lease_token WHERE id = :id")


@dataclass(frozen=True)
class _Row:
    line_no: int
    custom_id: str
    is_error: bool | None
    """None: it has no outcome."""


def _rows(connection: Connection, shard: Row[Any]) -> list[_Row]:
    return [_Row(*row) for row in connection.execute(_ROWS, shard._asdict())]


_MAKE_SHARD = text(
    """
    INSERT INTO shards (id, project_id, batch_id, number, first_line, last_line, model, model_no, priority,
                        total, completed, failed, created_at, lease_token, suspect_since)
    SELECT :new_id, s.project_id, s.batch_id, (SELECT max(number) + 1 FROM shards WHERE batch_id = s.batch_id),
           :first_line, s.last_line, s.model, s.model_no, s.priority,
           :total, :completed, :failed, s.created_at, s.lease_token, CASE WHEN :suspect THEN s.lease_token END
    FROM shards s WHERE s.id = :id
    """
)
# Results that are behind the cut lead to who wrote them by shard and token.
_COPY_ATTEMPTS = text(
    """
    INSERT INTO attempts (shard_id, lease_token, worker_id, started_at, ended_at, end_reason, aboard_line)
    SELECT :new_id, lease_token, worker_id, started_at, ended_at, end_reason, aboard_line
    FROM attempts WHERE shard_id = :id
    """
)
_SHORTEN = text(
    """
    UPDATE shards SET last_line = :last_line, total = total - :total,
        completed = completed - :completed, failed = failed - :failed
    WHERE id = :id
    """
)


def _split(connection: Connection, shard: Row[Any], rows: Sequence[_Row], last_line: int, *, suspect: bool) -> None:
    """Make the requests behind `last_line` a shard of their own, if any of them is to be run.

    It goes on with the tokens and the attempts of the whole.
    """
    behind = [row for row in rows if row.line_no > last_line]
    if all(row.is_error is not None for row in behind):
        return
    counts = {
        "total": len(behind),
        "completed": sum(row.is_error is False for row in behind),
        "failed": sum(row.is_error is True for row in behind),
    }
    first_line, new_id = behind[0].line_no, ids.new_shard_id()
    made = counts | {"id": shard.id, "new_id": new_id, "first_line": first_line, "suspect": suspect}
    connection.execute(_MAKE_SHARD, made)
    connection.execute(_COPY_ATTEMPTS, {"id": shard.id, "new_id": new_id})
    connection.execute(_SHORTEN, counts | {"id": shard.id, "last_line": last_line})


# A worker that was seen after its lease had ended was cut off, and its engine may live.
_DEATHS = text(
    """
    SELECT count(*) FROM attempts a
    WHERE a.shard_id = :id AND a.lease_token > :since AND a.aboard_line IS NOT NULL
      AND a.aboard_line >= :line
      AND (a.end_reason = 'died' OR a.end_reason = 'lost' AND NOT EXISTS (
          SELECT FROM workers w WHERE w.id = a.worker_id AND w.seen_at > a.ended_at))
    """
)
_WAIT = text(
    """
    UPDATE shards SET lease_token = lease_token + 1, lease_until = app_now() + make_interval(secs => :seconds)
    WHERE id = :id RETURNING state
    """
)


def _judge_one(
    connection: Connection,
    shard: Row[Any],
    row: _Row,
    most_deaths: int,
    grace_seconds: float,
) -> str | None:
    """Decide about a request that was alone with an engine that died."""
    deaths = connection.execute(
        _DEATHS, {"id": shard.id, "since": shard.suspect_since, "line": row.line_no}
    ).scalar_one()
    if deaths < most_deaths:
        return leases.release(connection, shard.id, shard.lease_token)
    if grace_seconds:
        return str(connection.execute(_WAIT, {"id": shard.id, "seconds": grace_seconds}).scalar_one())
    outcome = failure(
        row.line_no,
        row.custom_id,
        status_code=500,
        code="engine_crashed",
        message=f"The engine died each of the {deaths} times that it ran this request alone.",
    )
    group = Written(shard.id, shard.lease_token, shard.batch_id, [outcome])
    leases.write(connection, [group], uncertain=False)
    return "done"
