"""What Prometheus would see of the processes of a stack."""

from collections.abc import Callable
from dataclasses import dataclass

import httpx2
import services
from prometheus_client.parser import text_string_to_metric_families

from api.stack.program import free_port

PORTS = [f"PROMPTMILL_METRICS__{name}_PORT" for name in ("API", "RECONCILER", "WORKER")]
Labels = frozenset[tuple[str, str]]


@dataclass(frozen=True)
class Scrape:
    """The samples of one process at a moment."""

    samples: dict[tuple[str, Labels], float]
    types: dict[str, str]

    def value(self, name: str, **labels: str) -> float:
        """Return the sum of all samples of this name that have these labels."""
        wanted = set(labels.items())
        return sum(value for (each, has), value in self.samples.items() if each == name and wanted <= has)

    @property
    def known(self) -> set[str]:
        """Names of samples that there are, or will be with the first event."""
        ends = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum")}
        return {name + end for name, kind in self.types.items() for end in ends.get(kind, ("",))}


def text(port: int) -> str:
    answer = httpx2.get(f"http://127.0.0.1:{port}/metrics", timeout=20)
    assert answer.status_code == 200
    return answer.text


def scrape(port: int) -> Scrape:
    families = list(text_string_to_metric_families(text(port)))
    samples = {
        (each.name, frozenset(each.labels.items())): each.value for family in families for each in family.samples
    }
    return Scrape(samples, {family.name: family.type for family in families})


@dataclass(frozen=True)
class Watched:
    """A stack each of whose processes shows its figures."""

    stack: services.Stack
    api: int
    reconciler: int
    worker: int

    def until(self, port: int, condition: Callable[[Scrape], object], what: str) -> Scrape:
        """Return the first scrape for which `condition` is true."""
        seen = [scrape(port)]

        def looks_so() -> bool:
            seen.append(scrape(port))
            return bool(condition(seen[-1]))

        services.wait_until(looks_so, what)
        return seen[-1]


def watch(stack: services.Stack) -> Watched:
    """Start API, reconciler and a worker that show their figures."""
    shown = {name: str(free_port()) for name in PORTS}
    stack.settings = {**stack.settings, **shown, "PROMPTMILL_METRICS__CENSUS_SECONDS": "0.05"}
    stack.api()
    stack.reconciler()
    stack.worker()
    return Watched(stack, *ports(stack))


def ports(stack: services.Stack) -> list[int]:
    """Return where API, reconciler and worker of a watched stack show theirs."""
    return [int(stack.settings[name]) for name in PORTS]
