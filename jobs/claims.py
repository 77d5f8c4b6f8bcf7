"""Whose shard is run next, and the claim of it.

    1. the project of which the fewest shards run
    2. of those, the one that had its last turn longest ago
    3. within a project, the batch with the highest priority
    4. the batch of which the hint names a shard, else the oldest
    5. within a batch one model after the other, so that engines seldom swap adapters; of a model, the shard that the
       hint names, else the first

A suspect (`jobs.suspects`) has its turn like any other, but only a worker that holds nothing else gets it. One that
holds something is told so, and claims nothing more until that is over: a busy worker would never be alone by chance.
The suspect is reserved for it as long as it keeps asking. Other busy workers pass the suspect over meanwhile; one that
holds nothing takes it all the same.

A hint wakes a worker and names a shard, but it does not decide: hints of a huge batch stand in front of those of a
small one in Redis, and its shards do not. As many hints are sent as there are shards, so each shard gets its turn.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, TextClause, text

from jobs.leases import NOBODY_ABOARD, Lease

# Shards that are looked at: more than workers that claim at the same moment.
_CANDIDATES = 32
# How long a suspect is kept for a worker that is not alone yet. It asks every second; one that has died does not.
_RESERVED_SECONDS = 10

# `{may_run}` limits what may be claimed beside the hinted shard. Batches are looked up one by one and shards by their
# ids, whatever Postgres takes the tables' sizes for: without statistics it would join all shards with all batches.
_CLAIM = """
    WITH projects_in_turn AS MATERIALIZED (
        SELECT active.project_id, coalesce(running.shards, 0) AS running, turns.claimed_at
        FROM (SELECT DISTINCT project_id FROM batches WHERE status = 'in_progress') AS active
        LEFT JOIN (
            SELECT project_id, count(*) AS shards FROM shards
            WHERE state = 'running' AND model = ANY(:models) GROUP BY project_id
        ) AS running ON running.project_id = active.project_id
        LEFT JOIN turns ON turns.project_id = active.project_id
    ), candidates AS MATERIALIZED (
        SELECT first.id FROM (SELECT * FROM projects_in_turn ORDER BY running, claimed_at NULLS FIRST, project_id) AS p
        CROSS JOIN unnest(CAST(:models AS text[])) AS served (model)
        CROSS JOIN LATERAL (
            SELECT s.id, s.priority, s.created_at, s.number FROM shards s
            WHERE s.state = 'queued' AND s.model = served.model AND s.project_id = p.project_id AND {may_run}
              AND {is_open} AND {is_free}
            ORDER BY s.priority DESC, s.created_at, s.number LIMIT {candidates}
        ) AS first
        ORDER BY p.running, p.claimed_at NULLS FIRST, p.project_id,
                 first.priority DESC, first.created_at, first.number
        LIMIT {candidates}
    ), wanted AS (
        SELECT s.id, s.project_id, s.lease_until, s.suspect_since IS NOT NULL AND NOT :alone AS held_back
        FROM shards s LEFT JOIN projects_in_turn p ON p.project_id = s.project_id
        WHERE s.id = ANY(ARRAY(SELECT id FROM candidates) || CAST(:hinted AS text)) AND s.model = ANY(:models)
          AND (s.state = 'queued' OR (s.state = 'running' AND s.lease_until < app_now() AND {nobody_aboard}))
          AND {is_open} AND {is_free}
        ORDER BY s.reserved_by IS DISTINCT FROM :worker_id, p.running, p.claimed_at NULLS FIRST, s.project_id,
                 s.priority DESC,
                 CASE WHEN s.batch_id = (SELECT batch_id FROM shards WHERE id = :hinted) THEN s.model_no END,
                 s.id IS DISTINCT FROM :hinted, s.created_at, s.number
        LIMIT 1
        FOR UPDATE OF s SKIP LOCKED
    ), earlier AS (
        UPDATE attempts a SET ended_at = app_now(), end_reason = 'lost'
        FROM wanted WHERE a.shard_id = wanted.id AND a.ended_at IS NULL
    ), reserved AS (
        UPDATE shards s
        SET reserved_by = :worker_id, reserved_until = app_now() + make_interval(secs => {reserved_seconds})
        FROM wanted WHERE s.id = wanted.id AND wanted.held_back
    ), claimed AS (
        UPDATE shards s
        SET state = 'running', lease_token = s.lease_token + 1, reserved_by = NULL, reserved_until = NULL,
            lease_until = app_now() + make_interval(secs => :lease_seconds)
        FROM wanted WHERE s.id = wanted.id AND NOT wanted.held_back
        RETURNING s.*
    ), attempt AS (
        -- All of a suspect is taken for started at once: nothing else is.
        INSERT INTO attempts (shard_id, lease_token, worker_id, aboard_line)
        SELECT id, lease_token, :worker_id, CASE WHEN suspect_since IS NOT NULL THEN last_line END FROM claimed
    ), turn AS (
        INSERT INTO turns (project_id) SELECT project_id FROM claimed
        ON CONFLICT (project_id) DO UPDATE SET claimed_at = app_now()
    )
    SELECT wanted.id AS wanted_id, wanted.held_back,
           c.id AS shard_id, c.lease_token AS token, c.project_id, c.batch_id, c.priority, b.source_file_id, c.model_no,
           c.first_line, c.last_line, c.total - c.completed - c.failed AS remaining, b.endpoint,
           extract(epoch FROM b.expires_at - app_now())::float AS seconds_left,
           c.suspect_since IS NOT NULL AS is_suspect, c.model,
           -- Of a lease that was not taken back, the end is that of the lease: no attempt says so yet.
           extract(epoch FROM app_now() - coalesce(wanted.lease_until,
               (SELECT max(ended_at) FROM attempts WHERE shard_id = c.id), c.created_at))::float AS waited_seconds
    FROM wanted LEFT JOIN claimed c ON c.id = wanted.id LEFT JOIN batches b ON b.id = c.batch_id
"""
_IS_OPEN = """
    (SELECT b.status = 'in_progress' AND b.expires_at > app_now() AND b.endpoint = ANY(:endpoints)
     FROM batches b WHERE b.id = s.batch_id)
"""
# To a busy worker, a suspect that waits for another one is not there.
_IS_FREE = """
    (s.suspect_since IS NULL OR :alone OR s.reserved_by = :worker_id OR s.reserved_until > app_now() IS NOT TRUE)
"""


def _statement(may_run: str) -> TextClause:
    return text(
        _CLAIM.format(
            may_run=may_run,
            is_open=_IS_OPEN,
            is_free=_IS_FREE,
            nobody_aboard=NOBODY_ABOARD,
            candidates=_CANDIDATES,
            reserved_seconds=_RESERVED_SECONDS,
        )
    )


_CLAIM_HINTED = _statement("true")
# Celery gets its chance first. A hint from a time that has not come yet counts for nothing: the clock was set back.
_CLAIM_UNHINTED = _statement(
    "(s.hinted_at IS NULL OR s.hinted_at NOT BETWEEN app_now() - make_interval(secs => :hint_seconds) AND app_now())"
)


@dataclass(frozen=True)
class BeAlone:
    """It is the turn of a suspect, and the worker holds something else. A claim that names it keeps it reserved."""

    shard_id: str


# What a claim comes to: a lease; nothing waits; or a suspect waits until the worker is alone.
Claimed = Lease | BeAlone | None


@dataclass(frozen=True)
class Claimant:
    """Who claims, what it can run, for how long it takes a shard, and whether it holds nothing else."""

    worker_id: str
    models: Sequence[str]
    endpoints: Sequence[str]
    lease_seconds: float
    alone: bool = True


def claim(connection: Connection, hinted: str, by: Claimant) -> Claimed:
    """Take the shard whose turn it is, on a hint that names `hinted`."""
    return _take(connection, _CLAIM_HINTED, {"hinted": hinted}, by)


def claim_unhinted(connection: Connection, by: Claimant, *, hint_seconds: float) -> Claimed:
    """Take the shard whose turn it is of those whose hint went out `hint_seconds` ago or never."""
    return _take(connection, _CLAIM_UNHINTED, {"hinted": None, "hint_seconds": hint_seconds}, by)


def _take(connection: Connection, statement: TextClause, values: dict[str, Any], by: Claimant) -> Claimed:
    values |= {**asdict(by), "models": list(by.models), "endpoints": list(by.endpoints)}
    row = connection.execute(statement, values).one_or_none()
    if row is None:
        return None
    named = dict(row._mapping)  # noqa: SLF001  SQLAlchemy's public name
    wanted_id, held_back = named.pop("wanted_id"), named.pop("held_back")
    return BeAlone(wanted_id) if held_back else Lease(**named)
