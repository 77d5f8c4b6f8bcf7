"""Figures of the HTTP service: calls by route, status and time. A route is its pattern, never a path."""

from prometheus_client import Counter, Histogram

from jobs.metrics import REGISTRY, SHORT_SECONDS

METHODS = frozenset(("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"))
CALLS = Counter(
    "promptmill_http_requests_total",
    "Calls that were answered; `status` 0: the client left first. Unknown paths have the route `none`.",
    ["method", "route", "status"],
    registry=REGISTRY,
)
SECONDS = Histogram(
    "promptmill_http_request_seconds",
    "From the first line of a call to the last byte of its answer.",
    ["method", "route"],
    buckets=SHORT_SECONDS,
    registry=REGISTRY,
)


def bounded(method: str) -> str:
    """Return the method of a call, or `other`: clients may send any word as one."""
    return method if method in METHODS else "other"


def count_call(method: str, route: str | None, status: int, seconds: float) -> None:
    """Count one call."""
    labels = (method, route or "none")
    CALLS.labels(*labels, status).inc()
    SECONDS.labels(*labels).observe(seconds)
