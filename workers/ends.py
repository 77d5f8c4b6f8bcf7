"""The end of a batch: in Postgres first, then told to log, figures and traces."""

import time

from sqlalchemy import Engine

from jobs import db, lifecycle, metrics, telemetry, tracing
from jobs.settings import Retention

log = telemetry.get_logger(__name__)


def end_if_over(database: Engine, batch_id: str, retention: Retention, *, point: str, tries: int = 5) -> None:
    """End a batch of which nothing is left to run, and tell of it; others stay as they are.

    Raises:
        Unavailable: of the last of `tries`.
    """
    started = time.monotonic()
    ended = db.retrying(
        database, lambda connection: lifecycle.end(connection, batch_id, retention), point=point, tries=tries
    )
    if ended:
        log.info("batch_ended", batch_id=batch_id, status=str(ended.status))
        metrics.count_batch(ended.status, ended.state_seconds)
        tracing.note("finalize", batch_id, time.monotonic() - started, status=str(ended.status))
