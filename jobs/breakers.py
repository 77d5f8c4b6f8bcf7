"""Hosts on which an engine keeps dying with nothing aboard, or does not start: it is started there less and less often.

No request is to blame, and no other host suffers. A breaker is of a model and a host. It opens with the failure number
`breaker_failures` and stays open for `breaker_seconds`, then twice as long with each further one, up to
`breaker_max_seconds`. The first row that is started closes it for good: from then on a death is a matter of rows.
"""

from collections.abc import Sequence

from sqlalchemy import Connection, text

from jobs.settings import Worker

_NOTE_FAILURE = text(
    """
    INSERT INTO breakers AS b (hostname, model, failures, open_until)
    SELECT :hostname, model, 1, CASE WHEN :failures <= 1 THEN app_now() + make_interval(secs => :seconds) END
    FROM unnest(CAST(:models AS text[])) AS model ORDER BY model
    ON CONFLICT (hostname, model) DO UPDATE SET
        failures = b.failures + 1, failed_at = app_now(),
        open_until = CASE WHEN b.failures + 1 >= :failures THEN app_now() + make_interval(
            secs => least(:max_seconds, :seconds * 2 ^ least(b.failures + 1 - :failures, 30))) END
    """
)


def note_failure(connection: Connection, hostname: str, models: Sequence[str], settings: Worker) -> None:
    """Record that an engine for these models did not start on a host, or died there with nothing aboard."""
    values = {
        "hostname": hostname,
        "models": list(models),
        "failures": settings.breaker_failures,
        "seconds": settings.breaker_seconds,
        "max_seconds": settings.breaker_max_seconds,
    }
    connection.execute(_NOTE_FAILURE, values)


def seconds_open(connection: Connection, hostname: str, models: Sequence[str]) -> float:
    """Return how long no engine for these models should be started on a host, seconds; 0: it may be started now."""
    statement = text(
        """
        SELECT coalesce(extract(epoch FROM max(open_until) - app_now()), 0)::float
        FROM breakers WHERE hostname = :hostname AND model = ANY(:models)
        """
    )
    seconds: float = connection.execute(statement, {"hostname": hostname, "models": list(models)}).scalar_one()
    return max(0.0, seconds)


def forget(connection: Connection, *, keep_seconds: float) -> None:
    """Forget hosts on which no engine has failed for `keep_seconds`: they run it, or are gone."""
    statement = text(
        """
        DELETE FROM breakers
        WHERE failed_at < app_now() - make_interval(secs => :seconds) AND open_until > app_now() IS NOT TRUE
        """
    )
    connection.execute(statement, {"seconds": keep_seconds})


def close(connection: Connection, hostname: str, models: Sequence[str]) -> None:
    """Forget the failures: the engine works."""
    statement = text("DELETE FROM breakers WHERE hostname = :hostname AND model = ANY(:models)")
    connection.execute(statement, {"hostname": hostname, "models": list(models)})
