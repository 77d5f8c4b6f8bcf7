"""Figures of a reconciler: its own work, and webhooks. What waits in the whole queue is in `jobs.census`."""

from prometheus_client import Counter, Gauge, Histogram

from jobs.metrics import REGISTRY, SHORT_SECONDS

SWEEPS = Counter(
    "promptmill_sweeps_total",
    "Sweeps: `done`, left to `another` reconciler, or `failed` as a whole.",
    ["result"],
    registry=REGISTRY,
)
SWEEP_SECONDS = Histogram(
    "promptmill_sweep_seconds", "Sweeps that were done.", buckets=SHORT_SECONDS, registry=REGISTRY
)
LAST_SWEEP = Gauge(
    "promptmill_last_sweep_timestamp_seconds",
    "When a sweep of this reconciler last came to its end, Unix seconds.",
    registry=REGISTRY,
)
FAILED_STEPS = Counter("promptmill_failed_steps_total", "Steps of sweeps that failed.", ["step"], registry=REGISTRY)
RECOVERED = Counter(
    "promptmill_recovered_leases_total",
    "Leases that ended and were taken back, with rows `aboard` or with `none`.",
    ["rows"],
    registry=REGISTRY,
)
WEBHOOKS = Counter(
    "promptmill_webhooks_total", "Attempts to send a message, by whether they arrived.", ["result"], registry=REGISTRY
)
