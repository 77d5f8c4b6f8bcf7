"""The workers that are there, what they serve (models, each at the same endpoints), and how old they may be."""

import os
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version

from sqlalchemy import Connection, delete, func, insert, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert

from jobs.errors import ConfigurationError, InvalidRequest
from jobs.tables import min_worker_version, workers

VERSION = version("promptmill")
_RELEASE = re.compile(r"[0-9]{1,6}(?:\.[0-9]{1,6})*")


def register(
    connection: Connection,
    worker_id: str,
    *,
    engine: str,
    models: Sequence[str],
    endpoints: Sequence[str],
    revision: str | None = None,
) -> None:
    """Make a worker known; batches for its models and endpoints are accepted from now on.

    `revision` says which engine and model it runs; its attempts name the worker, so that results can be traced to it.
    """
    connection.execute(
        insert(workers).values(
            id=worker_id,
            hostname=socket.gethostname(),
            pid=os.getpid(),
            engine=engine,
            models=list(models),
            endpoints=list(endpoints),
            version=VERSION,
            revision=revision,
        )
    )


def note_seen(connection: Connection, worker_id: str, load: Mapping[str, float | None] | None = None) -> None:
    """Record that a worker is there, and what its engine is busy with: numbers by name, as `workers.load` has them."""
    statement = update(workers).where(workers.c.id == worker_id)
    connection.execute(statement.values(seen_at=func.app_now(), load=load))


def note_stopped(connection: Connection, worker_id: str) -> None:
    """Record that a worker ended in order. Its models stay known for a while: it may be restarting."""
    statement = update(workers).where(workers.c.id == worker_id)
    connection.execute(statement.values(seen_at=func.app_now(), stopped_at=func.app_now(), load=None))


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


@dataclass(frozen=True)
class WorkerInfo:
    """What may be shown of a worker."""

    id: str
    host: str
    version: str
    engine: str
    models: str
    revision: str
    state: str
    """`running`, `stopped`, or since when it was not seen."""
    load: dict[str, float | None] | None
    """What its engine was busy with when it was last seen, as `workers.load` has it."""


def list_seen(connection: Connection, *, memory_seconds: float) -> list[WorkerInfo]:
    """Return the workers that were seen lately, the newest first."""
    statement = text(
        """
        SELECT id, hostname, version, engine, models, revision, load,
               CASE WHEN stopped_at IS NOT NULL THEN 'stopped'
                    WHEN seen_at > app_now() - interval '2 minutes' THEN 'running'
                    ELSE 'not seen since ' || to_char(seen_at, 'YYYY-MM-DD HH24:MI:SS') END AS state
        FROM workers WHERE seen_at > app_now() - make_interval(secs => :memory) ORDER BY started_at DESC, id
        """
    )
    rows = connection.execute(statement, {"memory": memory_seconds})
    return [
        WorkerInfo(
            id=row.id,
            host=row.hostname,
            version=row.version,
            engine=row.engine,
            models=", ".join(row.models),
            revision=row.revision or "",
            state=row.state,
            load=row.load,
        )
        for row in rows
    ]


def parse_version(words: str) -> tuple[int, ...]:
    """Return the numbers of a version, without zeros at its end: `0.2.0rc1` is (0, 2), as 0.2 is.

    Raises:
        InvalidRequest: it does not begin with a number.
    """
    if not (match := _RELEASE.match(words)):
        message = f"'{words}' is no version. Say it like {VERSION}."
        raise InvalidRequest(message)
    return tuple(int(number) for number in re.sub(r"(\.0+)+$", "", match[0]).split("."))


def require_version(connection: Connection, wanted: str | None) -> None:
    """Have workers of an older version than `wanted` claim nothing more and drain; None: take all again.

    Raises:
        InvalidRequest: it is no version.
    """
    connection.execute(delete(min_worker_version))
    if wanted is not None:
        parse_version(wanted)
        connection.execute(upsert(min_worker_version).values(version=wanted).on_conflict_do_nothing())


def required_version(connection: Connection) -> str | None:
    """Return the oldest version that may claim, None if every one may."""
    return connection.execute(select(min_worker_version.c.version)).scalar_one_or_none()


def may_claim(connection: Connection) -> bool:
    """Tell whether this process is new enough to claim."""
    wanted = required_version(connection)
    return wanted is None or parse_version(VERSION) >= parse_version(wanted)


def check_version(connection: Connection) -> None:
    """Return for a process that is new enough to claim.

    Raises:
        ConfigurationError: it is not.
    """
    if not may_claim(connection):
        message = f"This worker is of version {VERSION}, and {required_version(connection)} is asked for at least."
        raise ConfigurationError(message)


@dataclass(frozen=True)
class Sighting:
    """What every project may know of a worker: what it serves, and whether it is there. Not where it is."""

    id: str
    engine: str
    version: str
    models: list[str]
    endpoints: list[str]
    is_stopped: bool
    seconds_ago: float
    """When it was last seen; each heartbeat says it anew."""
    kv_use: float | None
    """Part of its KV cache in use when it was last seen, 0 to 1; None: it does not say."""


def sightings(connection: Connection, *, memory_seconds: float) -> list[Sighting]:
    """Return the workers that were seen lately, those that are there first, then the newest."""
    statement = text(
        """
        SELECT id, engine, version, models, endpoints, stopped_at IS NOT NULL AS is_stopped,
               greatest(0, extract(epoch FROM app_now() - seen_at))::double precision AS seconds_ago,
               CAST(load ->> 'kv_use' AS double precision) AS kv_use
        FROM workers WHERE seen_at > app_now() - make_interval(secs => :memory)
        ORDER BY is_stopped, started_at DESC, id LIMIT 1000
        """
    )
    rows = connection.execute(statement, {"memory": memory_seconds})
    return [Sighting(**row._mapping) for row in rows]  # noqa: SLF001  its public name
