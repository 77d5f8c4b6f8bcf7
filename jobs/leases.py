"""The lease protocol: who may run a shard, and whose writes count. `jobs.claims` takes leases.

    claim     queued (or lease ended)   lease_token + 1, lease_until = now + ttl
    renew     running, same token       lease_until = now + ttl; tells which batches stop
    mark      running, same token       requests up to a line may be started from now on; tells which batches stop
    write     running, same token       results and counters in one transaction; the last one makes the shard done
    release   running, same token       back to queued, or stopped when its batch is
    recover   lease ended               back to queued, by the reconciler; with rows aboard, `jobs.suspects` does it

Every write of a holder names `(shard_id, lease_token)` and locks the shard's row in the same transaction. A claim
raises the token first, so whoever lost a lease changes nothing, however late it comes. Only the database's clock
counts (`app_now`); a worker measures the time since its last success with its own monotonic clock.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import msgspec
from sqlalchemy import Connection, text

from jobs import db, pgcopy
from jobs.outcomes import Outcome

COPY_RESULTS = (
    "COPY results (batch_id, line_no, is_error, status_code, code, lease_token, content) FROM STDIN (FORMAT BINARY)"
)


# A shard id and the token of a lease on it.
Held = tuple[str, int]


@dataclass(frozen=True)
class Lease:
    """A claimed shard. `remaining` of its requests have no outcome yet.

    `seconds_left` is how long its batch may still start requests, counted from the claim.
    """

    shard_id: str
    token: int
    project_id: str
    batch_id: str
    priority: int
    source_file_id: str
    model_no: int
    first_line: int
    last_line: int
    remaining: int
    endpoint: str
    seconds_left: float
    is_suspect: bool = False
    """It must be run alone (`jobs.suspects`)."""
    model: str = ""
    waited_seconds: float = 0
    """How long the shard has waited for this claim."""

    @property
    def held(self) -> Held:
        return self.shard_id, self.token


@dataclass(frozen=True)
class Renewal:
    """What a heartbeat or a mark learned of one lease. A lease without one is lost."""

    stopping: bool
    """Its batch was cancelled, or its time is over: nothing more is to be started."""


# Lines and results are looked up one by one, for the reason that `jobs.inputs` has: between the requests of a shard may
# lie ten times as many of other models, and a join compared all of them with all requests of the batch.
_ROWS = text(
    """
    SELECT r.line_no, r.custom_id, l.content
    FROM requests r CROSS JOIN LATERAL (
        SELECT content FROM lines WHERE file_id = :file_id AND line_no = r.line_no LIMIT 1
    ) AS l
    WHERE r.batch_id = :batch_id AND r.line_no BETWEEN :first_line AND :last_line AND r.model_no = :model_no
      AND (SELECT x.is_error FROM results x WHERE x.batch_id = r.batch_id AND x.line_no = r.line_no) IS NULL
    ORDER BY r.line_no
    """
)


class Row(msgspec.Struct, frozen=True):
    """A request that is to be run. `content` is its line as it was sent."""

    line_no: int
    custom_id: str
    content: bytes


def load_rows(connection: Connection, lease: Lease) -> list[Row]:
    """Return the shard's requests that have no outcome yet, in order.

    Read after the claim, this is exact: earlier holders can no longer write.
    """
    values = {
        "batch_id": lease.batch_id,
        "file_id": lease.source_file_id,
        "model_no": lease.model_no,
        "first_line": lease.first_line,
        "last_line": lease.last_line,
    }
    return [Row(row.line_no, row.custom_id, bytes(row.content)) for row in connection.execute(_ROWS, values)]


# Rows are locked in the order of their ids wherever several are, so that two transactions never wait for each other.
_RENEW = text(
    """
    WITH held AS (
        SELECT s.id FROM shards s
        JOIN unnest(CAST(:ids AS text[]), CAST(:tokens AS bigint[])) AS mine (id, token)
          ON s.id = mine.id AND s.lease_token = mine.token
        WHERE s.state = 'running' ORDER BY s.id FOR UPDATE OF s
    )
    UPDATE shards s SET lease_until = app_now() + make_interval(secs => :lease_seconds)
    FROM held, batches b WHERE s.id = held.id AND b.id = s.batch_id
    RETURNING s.id, s.lease_token, b.status <> 'in_progress' OR b.expires_at <= app_now() AS stopping
    """
)


def renew(connection: Connection, held: Sequence[Held], *, lease_seconds: float) -> dict[Held, Renewal]:
    """Extend the leases `held`. Those missing from the answer are lost."""
    return _renewals(connection.execute(_RENEW, _columns(held) | {"lease_seconds": lease_seconds}))


def _columns(held: Collection[Held]) -> dict[str, Any]:
    """Return leases as the statements take them."""
    return {"ids": [shard_id for shard_id, _ in held], "tokens": [token for _, token in held]}


def _renewals(rows: Iterable[Any]) -> dict[Held, Renewal]:
    return {(row.id, row.lease_token): Renewal(stopping=row.stopping) for row in rows}


# An attempt is open exactly as long as its lease counts: what ends the lease ends the attempt in the same transaction.
_MARK = text(
    """
    WITH open AS (
        SELECT a.shard_id, a.lease_token, mark.line,
               b.status <> 'in_progress' OR b.expires_at <= app_now() AS stopping
        FROM attempts a
        JOIN unnest(CAST(:ids AS text[]), CAST(:tokens AS bigint[]), CAST(:lines AS int[])) AS mark (id, token, line)
          ON a.shard_id = mark.id AND a.lease_token = mark.token
        JOIN shards s ON s.id = a.shard_id JOIN batches b ON b.id = s.batch_id
        WHERE a.ended_at IS NULL ORDER BY a.shard_id FOR UPDATE OF a
    ), moved AS (
        UPDATE attempts a SET aboard_line = open.line
        FROM open WHERE a.shard_id = open.shard_id AND a.lease_token = open.lease_token
          AND NOT open.stopping AND open.line > coalesce(a.aboard_line, 0)
    )
    SELECT shard_id AS id, lease_token, stopping FROM open
    """
)


def mark(connection: Connection, lines: Mapping[Held, int]) -> dict[Held, Renewal]:
    """Record how far requests may be started, as a line for each lease, unless its batch stops.

    Those missing from the answer are lost. A request is started only after its mark is committed: whoever finds a lease
    that ended badly knows by it which requests the engine may have had aboard.
    """
    return _renewals(connection.execute(_MARK, _columns(lines) | {"lines": list(lines.values())}))


@dataclass(frozen=True)
class Written:
    """One lease's outcomes that are to be written together."""

    shard_id: str
    token: int
    batch_id: str
    outcomes: Sequence[Outcome]

    @property
    def held(self) -> Held:
        return self.shard_id, self.token


_LOCK = text(
    """
    SELECT s.id, s.lease_token FROM shards s
    JOIN unnest(CAST(:ids AS text[]), CAST(:tokens AS bigint[])) AS held (id, token)
      ON s.id = held.id AND s.lease_token = held.token
    WHERE s.state = 'running' ORDER BY s.id FOR UPDATE OF s
    """
)
_ALREADY_DONE = text(
    """
    SELECT s.id, s.lease_token FROM shards s
    JOIN unnest(CAST(:ids AS text[]), CAST(:tokens AS bigint[])) AS held (id, token)
      ON s.id = held.id AND s.lease_token = held.token
    WHERE s.state = 'done'
    """
)
_COUNT = text(
    """
    WITH mine AS (
        SELECT * FROM unnest(
            CAST(:ids AS text[]), CAST(:tokens AS bigint[]), CAST(:completed AS int[]), CAST(:failed AS int[]),
            CAST(:input AS bigint[]), CAST(:cached AS bigint[]), CAST(:output AS bigint[]), CAST(:reasoning AS bigint[])
        ) AS m (id, token, completed, failed, input, cached, output, reasoning)
    ), counted AS (
        UPDATE shards s SET completed = s.completed + m.completed, failed = s.failed + m.failed,
            input_tokens = s.input_tokens + m.input, cached_tokens = s.cached_tokens + m.cached,
            output_tokens = s.output_tokens + m.output, reasoning_tokens = s.reasoning_tokens + m.reasoning,
            state = CASE WHEN s.completed + s.failed + m.completed + m.failed = s.total THEN 'done' ELSE s.state END,
            lease_until = CASE WHEN s.completed + s.failed + m.completed + m.failed < s.total THEN s.lease_until END
        FROM mine m WHERE s.id = m.id AND s.lease_token = m.token
        RETURNING s.id, s.lease_token, s.state = 'done' AS done
    ), attempt AS (
        UPDATE attempts a SET ended_at = app_now(), end_reason = 'done'
        FROM counted c WHERE c.done AND a.shard_id = c.id AND a.lease_token = c.lease_token AND a.ended_at IS NULL
    )
    SELECT * FROM counted
    """
)
_END_ATTEMPT = text(
    """
    UPDATE attempts SET ended_at = app_now(), end_reason = :reason
    WHERE shard_id = :id AND lease_token = :token AND ended_at IS NULL
    """
)


def write(connection: Connection, groups: Sequence[Written], *, uncertain: bool) -> dict[Held, bool]:
    """Write outcomes and counters of several leases. Return, by lease, whether its shard is done; lost ones miss.

    Args:
        connection: its transaction makes results and counters durable together.
        groups: outcomes by lease; each line number at most once.
        uncertain: an earlier try of the same groups may have been committed (its COMMIT got no answer), so outcomes
            that are there already are left out.
    """
    held = _columns([group.held for group in groups])
    live = {(row.id, row.lease_token) for row in connection.execute(_LOCK, held)}
    done = {(row.id, row.lease_token) for row in connection.execute(_ALREADY_DONE, held)} if uncertain else set()
    kept = [_fresh(connection, group, uncertain=uncertain) for group in groups if group.held in live]
    with db.driver(connection).cursor().copy(COPY_RESULTS) as copy:
        for piece in pgcopy.pieces(chain.from_iterable(map(_packed, kept))):
            copy.write(piece)
    return dict.fromkeys(done, True) | _count(connection, kept)


def _fresh(connection: Connection, group: Written, *, uncertain: bool) -> Written:
    if not uncertain:
        return group
    statement = text("SELECT line_no FROM results WHERE batch_id = :batch_id AND line_no = ANY(:lines)")
    values = {"batch_id": group.batch_id, "lines": [outcome.line_no for outcome in group.outcomes]}
    there = set(connection.execute(statement, values).scalars())
    fresh = [outcome for outcome in group.outcomes if outcome.line_no not in there]
    return Written(group.shard_id, group.token, group.batch_id, fresh)


def _packed(group: Written) -> Iterator[bytes]:
    start = pgcopy.row_start(7) + pgcopy.field(group.batch_id.encode())
    token = pgcopy.int8(group.token)
    for outcome in group.outcomes:
        code = pgcopy.NULL if outcome.code is None else pgcopy.field(outcome.code.encode())
        head = (start, pgcopy.int4(outcome.line_no), pgcopy.boolean(outcome.is_error), pgcopy.int2(outcome.status_code))
        yield b"".join((*head, code, token, pgcopy.pack_length(len(outcome.content))))
        # By itself: it may be long.
        yield outcome.content


def _count(connection: Connection, groups: Sequence[Written]) -> dict[Held, bool]:
    """Add up what was written, and end the attempts whose shards are done; return, by lease, whether they are."""
    sums = [_sums(group) for group in groups]
    values = {name: [each[name] for each in sums] for name in (sums[0] if sums else ())}
    held = _columns([group.held for group in groups])
    rows = connection.execute(_COUNT, held | values) if groups else ()
    return {(row.id, row.lease_token): row.done for row in rows}


def _sums(group: Written) -> dict[str, int]:
    failed = sum(outcome.is_error for outcome in group.outcomes)
    return {
        "completed": len(group.outcomes) - failed,
        "failed": failed,
        "input": sum(outcome.tokens.input for outcome in group.outcomes),
        "cached": sum(outcome.tokens.cached for outcome in group.outcomes),
        "output": sum(outcome.tokens.output for outcome in group.outcomes),
        "reasoning": sum(outcome.tokens.reasoning for outcome in group.outcomes),
    }


_RELEASE = text(
    """
    UPDATE shards s
    SET state = CASE WHEN b.status = 'in_progress' AND b.expires_at > app_now() THEN 'queued' ELSE 'stopped' END,
        lease_until = NULL, hinted_at = NULL
    FROM batches b WHERE b.id = s.batch_id AND s.id = :id AND s.lease_token = :token AND s.state = 'running'
    RETURNING s.state
    """
)


def release(connection: Connection, shard_id: str, token: int) -> str | None:
    """Give the shard back and return its new state, queued or stopped; None if the lease was lost already."""
    state = connection.execute(_RELEASE, {"id": shard_id, "token": token}).scalar_one_or_none()
    if state is None:
        return None
    reason = "released" if state == "queued" else "stopped"
    connection.execute(_END_ATTEMPT, {"id": shard_id, "token": token, "reason": reason})
    return str(state)


# Of a shard `s`. Else rows may have died with their engine, and `jobs.suspects` looks into it.
NOBODY_ABOARD = """
    s.suspect_since IS NULL AND NOT EXISTS (
        SELECT FROM attempts a
        WHERE a.shard_id = s.id AND a.lease_token = s.lease_token AND a.aboard_line IS NOT NULL)
"""
_RECOVER = """
    WITH over AS (
        SELECT s.id FROM shards s
        WHERE s.state = 'running' AND s.lease_until < app_now() AND {nobody_aboard}
        ORDER BY s.id FOR UPDATE OF s SKIP LOCKED
    ), ended AS (
        UPDATE shards s
        SET state = CASE WHEN b.status = 'in_progress' AND b.expires_at > app_now() THEN 'queued' ELSE 'stopped' END,
            lease_until = NULL, hinted_at = NULL
        FROM over, batches b WHERE s.id = over.id AND b.id = s.batch_id
        RETURNING s.id, s.lease_token
    ), attempt AS (
        UPDATE attempts a SET ended_at = app_now(), end_reason = 'lost'
        FROM ended WHERE a.shard_id = ended.id AND a.lease_token = ended.lease_token AND a.ended_at IS NULL
    )
    SELECT id FROM ended
"""


def recover(connection: Connection) -> list[str]:
    """Take back every lease that has ended with nothing aboard; return the shards. `jobs.suspects` has the others."""
    return list(connection.execute(text(_RECOVER.format(nobody_aboard=NOBODY_ABOARD))).scalars())
