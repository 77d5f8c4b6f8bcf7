"""Figures for Prometheus: those that every process has. `jobs.metrics_port` shows them.

Each process counts for itself and is a target of its own, so that several of a kind are added up by whoever asks.
What Postgres knows is shown by reconcilers only (`jobs.census`); each shows the same, so one takes their maximum.

Names end in their unit. Labels are of our own making and few: models, routes, states, codes, and the ids of projects
where they are wanted; never an id of a batch or a row, nor anything that a client wrote.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, GCCollector, Histogram, Info, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

# Else each counter has a second series, with the time at which it was made.
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]

# Not the library's own one: engines put theirs there.
REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)
GCCollector(registry=REGISTRY)

# Of what takes minutes to days: waiting, running, batches.
LONG_SECONDS = (0.1, 0.5, 1, 5, 15, 60, 300, 900, 3_600, 4 * 3_600, 12 * 3_600, 24 * 3_600)
# Of what somebody waits for.
SHORT_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

Family = GaugeMetricFamily | CounterMetricFamily

BUILD = Info("promptmill_build", "Version and kind of this process.", registry=REGISTRY)
DATABASE_ERRORS = Counter(
    "promptmill_database_errors_total",
    "Transactions that Postgres did not take, by the class of the driver's error.",
    ["reason"],
    registry=REGISTRY,
)
# There before the first one, so that an alert sees it come.
DATABASE_ERRORS.labels("DiskFull")
HINTS = Counter(
    "promptmill_hints_total", "Hints, `sent` one by one or `failed` together.", ["result"], registry=REGISTRY
)
HINTS.labels("failed")
BATCHES = Counter(
    "promptmill_batches_total", "Batches that this process brought to their end.", ["status"], registry=REGISTRY
)
BATCH_STATE_SECONDS = Histogram(
    "promptmill_batch_state_seconds",
    "How long batches that have ended were in each state.",
    ["state"],
    buckets=LONG_SECONDS,
    registry=REGISTRY,
)


def count_batch(status: str, state_seconds: Mapping[str, float]) -> None:
    """Count a batch that this process ended."""
    BATCHES.labels(status).inc()
    for state, seconds in state_seconds.items():
        BATCH_STATE_SECONDS.labels(state).observe(seconds)


class Reading(Collector):
    """Figures that are looked up when somebody asks for them."""

    def __init__(self, look: Callable[[], Iterable[Family]]) -> None:
        self._look = look

    def collect(self) -> Iterable[Family]:
        return self._look()


@dataclass(frozen=True)
class Figure:
    """What a figure that is looked up is called, and by what it is told apart."""

    name: str
    help: str
    labels: tuple[str, ...] = ()
    kind: Literal["gauge", "counter"] = "gauge"

    def family(self, values: Iterable[tuple[Sequence[str], float]]) -> Family:
        """Return the figure with its values, each with its labels."""
        kind = GaugeMetricFamily if self.kind == "gauge" else CounterMetricFamily
        family = kind(self.name, self.help, labels=self.labels)
        for labels, value in values:
            family.add_metric(labels, value)
        return family
