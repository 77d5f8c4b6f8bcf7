"""What Postgres knows about the whole queue, as figures: one statement, over partial indexes of what is not over.

Reconcilers show it. It is the same whichever of them is asked, and read anew only every few seconds, however often they
are.
"""

import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, text

from jobs import db, telemetry
from jobs.metrics import Family, Figure
from jobs.settings import Settings

log = telemetry.get_logger(__name__)

STATEMENT_SECONDS = 5.0
# Projects that are told apart; the work of others is added up as `other`.
MAX_PROJECTS = 100
OTHERS = "other"

_UP = Figure("promptmill_database_up", "1: Postgres answered just now; 0: it did not, and the others are missing.")
_QUEUED_SHARDS = Figure("promptmill_queued_shards", "Shards that wait for a worker.", ("project", "model"))
_QUEUED_ROWS = Figure("promptmill_queued_rows", "Rows without an outcome in them.", ("project", "model"))
_OLDEST_QUEUED = Figure(
    "promptmill_oldest_queued_seconds",
    "Age of the oldest of them, since its batch was created.",
    ("project", "model"),
)
_RUNNING_SHARDS = Figure("promptmill_running_shards", "Shards under a lease.", ("project", "model"))
_OLDEST_LEASE = Figure("promptmill_oldest_lease_seconds", "Age of the oldest of these leases.", ("project", "model"))
_ENDED_LEASES = Figure("promptmill_ended_leases", "Leases that are over, not taken back yet.", ("project", "model"))
_SUSPECTS = Figure("promptmill_suspect_shards", "Shards that wait or run alone since an engine died with them aboard.")
_OPEN_BATCHES = Figure("promptmill_open_batches", "Batches that are not over.", ("status",))
_WORKERS = Figure("promptmill_workers", "Workers that live; 0 for a model of the last day.", ("model",))
_SILENT = Figure(
    "promptmill_silent_workers",
    "Workers that fell silent in the last hour, and none was started there since.",
    ("model",),
)
_BREAKER_FAILURES = Figure(
    "promptmill_breaker_failures", "Starts of an engine that failed in a row.", ("hostname", "model")
)
_BREAKER_OPEN = Figure("promptmill_breaker_open", "1: no engine is started there now.", ("hostname", "model"))
_WEBHOOKS = Figure("promptmill_webhook_messages_waiting", "Messages to webhooks that have not arrived.")
_OLDEST_WEBHOOK = Figure("promptmill_oldest_webhook_seconds", "Age of the oldest of them.")
_BYTES = Figure("promptmill_database_bytes", "Size of the database on disk.")
FIGURES = (
    _UP,
    _QUEUED_SHARDS,
    _QUEUED_ROWS,
    _OLDEST_QUEUED,
    _RUNNING_SHARDS,
    _OLDEST_LEASE,
    _ENDED_LEASES,
    _SUSPECTS,
    _OPEN_BATCHES,
    _WORKERS,
    _SILENT,
    _BREAKER_FAILURES,
    _BREAKER_OPEN,
    _WEBHOOKS,
    _OLDEST_WEBHOOK,
    _BYTES,
)

# Attempts of running shards are looked up one by one, by their key. A suspect that waits for its worker to show that it
# lives (`jobs.suspects`) has none.
_CENSUS = text(
    """
    SELECT
    (SELECT json_agg(q) FROM (
        SELECT project_id AS project, model, count(*) AS shards, sum(total - completed - failed) AS rows,
               extract(epoch FROM app_now() - min(created_at)) AS age,
               count(*) FILTER (WHERE suspect_since IS NOT NULL) AS suspects
        FROM shards WHERE state = 'queued' GROUP BY 1, 2) AS q) AS queued,
    (SELECT json_agg(r) FROM (
        SELECT s.project_id AS project, s.model, count(*) AS shards,
               extract(epoch FROM app_now() - min(a.started_at)) AS age,
               count(*) FILTER (WHERE s.lease_until < app_now()) AS ended,
               count(*) FILTER (WHERE s.suspect_since IS NOT NULL) AS suspects
        FROM shards s LEFT JOIN LATERAL (
            SELECT started_at FROM attempts WHERE shard_id = s.id AND lease_token = s.lease_token LIMIT 1) AS a ON true
        WHERE s.state = 'running' GROUP BY 1, 2) AS r) AS running,
    (SELECT json_agg(b) FROM (
        SELECT status, count(*) AS batches FROM batches
        WHERE status IN ('validating', 'in_progress', 'finalizing', 'cancelling') GROUP BY 1) AS b) AS batches,
    (SELECT json_agg(w) FROM (
        SELECT model,
               count(*) FILTER (WHERE stopped_at IS NULL
                   AND seen_at >= app_now() - make_interval(secs => :lease_seconds)) AS live,
               count(*) FILTER (WHERE stopped_at IS NULL
                   AND seen_at < app_now() - make_interval(secs => :lease_seconds)
                   AND seen_at > app_now() - interval '1 hour'
                   AND NOT EXISTS (
                       SELECT FROM workers n
                       WHERE n.hostname = w.hostname AND n.models = w.models AND n.started_at > w.seen_at)) AS silent
        FROM workers w, unnest(models) AS model
        WHERE seen_at > app_now() - make_interval(secs => :memory_seconds) GROUP BY 1) AS w) AS workers,
    (SELECT json_agg(k) FROM (
        SELECT hostname, model, failures, coalesce(open_until > app_now(), false)::int AS open
        FROM breakers) AS k) AS breakers,
    (SELECT json_build_object('waiting', count(*), 'age', extract(epoch FROM app_now() - min(created_at)))
     FROM webhook_deliveries WHERE next_at IS NOT NULL) AS webhooks,
    pg_database_size(current_database()) AS bytes
    """
)

Census = Mapping[str, Any]


def take(connection: Connection, *, lease_seconds: float, memory_seconds: float) -> Census:
    """Count everything that is not over, at one moment."""
    values = {"lease_seconds": lease_seconds, "memory_seconds": memory_seconds}
    row = connection.execute(_CENSUS, values).one()
    return {name: [] if value is None else value for name, value in row._mapping.items()}  # noqa: SLF001


def families(census: Census, *, projects: bool) -> Iterator[Family]:
    """Yield the census as figures; `projects` tells projects apart, by their ids."""
    queued, running = (_by_project(census[name], projects=projects) for name in ("queued", "running"))
    yield _UP.family([((), 1)])
    yield _sum(_QUEUED_SHARDS, queued, "shards")
    yield _sum(_QUEUED_ROWS, queued, "rows")
    yield _most(_OLDEST_QUEUED, queued, "age")
    yield _sum(_RUNNING_SHARDS, running, "shards")
    yield _most(_OLDEST_LEASE, running, "age")
    yield _sum(_ENDED_LEASES, running, "ended")
    yield _SUSPECTS.family([((), sum(each["suspects"] for each in (*census["queued"], *census["running"])))])
    yield _OPEN_BATCHES.family(((each["status"],), each["batches"]) for each in census["batches"])
    yield _WORKERS.family(((each["model"],), each["live"]) for each in census["workers"])
    yield _SILENT.family(((each["model"],), each["silent"]) for each in census["workers"])
    yield _BREAKER_FAILURES.family(((each["hostname"], each["model"]), each["failures"]) for each in census["breakers"])
    yield _BREAKER_OPEN.family(((each["hostname"], each["model"]), each["open"]) for each in census["breakers"])
    yield _WEBHOOKS.family([((), census["webhooks"]["waiting"])])
    yield _OLDEST_WEBHOOK.family([((), census["webhooks"]["age"] or 0)])
    yield _BYTES.family([((), census["bytes"])])


Labelled = tuple[tuple[str, str], Mapping[str, Any]]


def _by_project(rows: Sequence[Mapping[str, Any]], *, projects: bool) -> list[Labelled]:
    """Return each row with its project, or what stands for it, and its model."""
    shards = Counter[str]()
    for row in rows:
        shards[row["project"]] += row["shards"]
    named = {project for project, _ in shards.most_common(MAX_PROJECTS)}
    return [((_project(row["project"], named) if projects else "", row["model"]), row) for row in rows]


def _project(project: str, named: set[str]) -> str:
    return project if project in named else OTHERS


def _sum(figure: Figure, rows: Sequence[Labelled], column: str) -> Family:
    sums = Counter[tuple[str, str]]()
    for labels, row in rows:
        sums[labels] += row[column]
    return figure.family(sums.items())


def _most(figure: Figure, rows: Sequence[Labelled], column: str) -> Family:
    most: dict[tuple[str, str], float] = {}
    for labels, row in rows:
        most[labels] = max(most.get(labels, 0), row[column] or 0)
    return figure.family(most.items())


class Censuses:
    """Takes a census when it is asked and the last one is too old. Has a connection of its own."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        url = settings.database_url.get_secret_value()
        self._database = db.make_engine(url, connections=1, statement_seconds=STATEMENT_SECONDS)
        self._lock = threading.Lock()
        self._families: list[Family] = []
        self._until = 0.0

    def families(self) -> list[Family]:
        """Return the figures, or only that there are none while Postgres is away. Any thread may ask."""
        with self._lock:
            if time.monotonic() >= self._until:
                self._families = self._look()
                self._until = time.monotonic() + self._settings.metrics.census_seconds
            return self._families

    def _look(self) -> list[Family]:
        settings = self._settings
        try:
            with db.reading(self._database) as connection:
                census = take(
                    connection,
                    lease_seconds=settings.shards.lease_seconds,
                    memory_seconds=settings.retention.model_memory_seconds,
                )
        except Exception as error:  # noqa: BLE001  that it failed is a figure too
            log.warning("census_failed", error=db.reason(error))
            return [_UP.family([((), 0)])]
        return list(families(census, projects=settings.metrics.projects))
