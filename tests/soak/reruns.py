"""How soon work that was taken from a worker is run again, by what Postgres noted about attempts."""

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Connection, text

# A shard that is cut takes its attempts along: a pair that several shards have is one.
_PAIRS = text(
    """
    SELECT DISTINCT p.end_reason AS reason, w.pid, p.next_worker, extract(epoch FROM p.started_at)::float8 AS began,
           extract(epoch FROM p.ended_at)::float8 AS ended, extract(epoch FROM p.next_start)::float8 AS again
    FROM (
        SELECT a.*, lead(started_at) OVER of_shard AS next_start, lead(worker_id) OVER of_shard AS next_worker
        FROM attempts a WINDOW of_shard AS (PARTITION BY shard_id ORDER BY lease_token)
    ) AS p JOIN workers w ON w.id = p.worker_id
    WHERE p.end_reason IN ('lost', 'died', 'released') AND p.next_start IS NOT NULL
    """
)


@dataclass(frozen=True)
class Rerun:
    """An attempt that did not end its shard, and was followed by another one."""

    reason: str
    seconds: float
    """From its end, as Postgres noted it, to the start of the next."""
    since_death: float | None = None
    """From the end of its worker's process to the start of the next, seconds; None: it did not end in the attempt."""


def find(connection: Connection, deaths: Iterable[tuple[int, float]]) -> list[Rerun]:
    """Return what was run again. `deaths` are process ids of workers and when they ended, seconds since 1970."""
    ends = tuple(deaths)
    return [
        Rerun(pair.reason, pair.again - pair.ended, _since_death(pair.pid, pair.began, pair.ended, pair.again, ends))
        for pair in connection.execute(_PAIRS)
    ]


def _since_death(
    pid: int, began: float, ended: float, again: float, deaths: Iterable[tuple[int, float]]
) -> float | None:
    return next((again - at for dead, at in deaths if dead == pid and began <= at <= ended), None)
