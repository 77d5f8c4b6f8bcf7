"""The workers that are there, and what they serve: models, each at the same endpoints."""

import os
import socket
from collections.abc import Sequence
from importlib.metadata import version

from sqlalchemy import Connection, func, insert, text, update

from jobs.tables import workers


def register(
    connection: Connection, worker_id: str, *, engine: str, models: Sequence[str], endpoints: Sequence[str]
) -> None:
    """Make a worker known; batches for its models and endpoints are accepted from now on."""
    connection.execute(
        insert(workers).values(
            id=worker_id,
            hostname=socket.gethostname(),
            pid=os.getpid(),
            engine=engine,
            models=list(models),
            endpoints=list(endpoints),
            version=version("promptmill"),
        )
    )


def note_seen(connection: Connection, worker_id: str) -> None:
    connection.execute(update(workers).where(workers.c.id == worker_id).values(seen_at=func.app_now()))


def note_stopped(connection: Connection, worker_id: str) -> None:
    """Record that a worker ended in order. Its models stay known for a while: it may be restarting."""
    statement = update(workers).where(workers.c.id == worker_id)
    connection.execute(statement.values(seen_at=func.app_now(), stopped_at=func.app_now()))


def served_models(connection: Connection, *, memory_seconds: float) -> dict[str, int]:
    """Map each model that a worker serves, or served lately, to when it was first served (Unix seconds)."""
    statement = text(
        """
        SELECT model, min(started_at) AS since FROM workers, unnest(models) AS model
        WHERE seen_at > app_now() - make_interval(secs => :memory) GROUP BY model ORDER BY model
        """
    )
    rows = connection.execute(statement, {"memory": memory_seconds})
    return {row.model: int(row.since.timestamp()) for row in rows}


def served_endpoints(connection: Connection, models: Sequence[str], *, memory_seconds: float) -> set[str]:
    """Return the endpoints at which one worker serves all of `models`, or served them lately; none if there is none."""
    statement = text(
        """
        SELECT DISTINCT endpoint FROM workers, unnest(endpoints) AS endpoint
        WHERE models @> CAST(:models AS text[]) AND seen_at > app_now() - make_interval(secs => :memory)
        """
    )
    return set(connection.execute(statement, {"models": list(models), "memory": memory_seconds}).scalars())
