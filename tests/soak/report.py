"""What came of a soak, as JSON and as Markdown."""

import math
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

from soak.ledger import Ledger


@dataclass(frozen=True)
class Report:
    seed: int
    seconds: float
    """From the first fault to the last."""
    settled_seconds: float
    """From the last fault until every batch had ended."""
    ledger: Ledger
    faults: Sequence[tuple[float, str]]
    restarts: Counter[str]
    """How often a supervisor started a process again, by its name and exit status, negative for a signal."""
    attempts: Counter[str]
    """How leases ended."""

    @property
    def is_good(self) -> bool:
        return not self.ledger.problems

    @cached_property
    def recoveries(self) -> dict[str, list[float]]:
        """Seconds from each fault until the next results of any batch were committed, by kind, ascending."""
        committed, found = sorted(self.ledger.committed), defaultdict(list)
        for at, kind in self.faults:
            if (place := bisect_right(committed, at)) < len(committed):
                found[kind].append(committed[place] - at)
        return {kind: sorted(times) for kind, times in sorted(found.items())}

    @cached_property
    def all_recoveries(self) -> list[float]:
        return sorted(time for times in self.recoveries.values() for time in times)

    @property
    def longest_pause(self) -> tuple[float, list[str]]:
        """The longest time between two commits of results, seconds, and the faults that began in it.

        Of the time of faults: afterwards a poison may be all that is left.
        """
        end = max((at for at, _ in self.faults), default=0)
        committed = sorted(moment for moment in self.ledger.committed if moment <= end)
        if len(committed) < 2:
            return 0, []
        seconds, begin = max((after - before, before) for before, after in pairwise(committed))
        return seconds, [kind for at, kind in self.faults if begin <= at <= begin + seconds]

    def facts(self) -> dict[str, Any]:
        """Return all figures, as JSON has them."""
        counts, times = self.ledger.counts, self.all_recoveries
        return {
            "seed": self.seed,
            "seconds": round(self.seconds, 1),
            "settled_seconds": round(self.settled_seconds, 1),
            "counts": dict(sorted(counts.items())),
            "rows_per_second": round(counts["rows"] / (self.seconds + self.settled_seconds), 1),
            "lost": counts["lost"],
            "doubled": counts["doubled"],
            "wrong": counts["wrong"],
            "problems": self.ledger.problems[:100],
            "faults": len(self.faults),
            "faults_by_kind": dict(sorted(Counter(kind for _, kind in self.faults).items())),
            "recovery_seconds": {name: _rank(times, share) for name, share in QUANTILES.items()},
            "recovery_seconds_by_kind": {
                kind: {name: _rank(times, share) for name, share in QUANTILES.items()}
                for kind, times in self.recoveries.items()
            },
            "longest_pause_seconds": round(self.longest_pause[0], 3),
            "faults_in_longest_pause": self.longest_pause[1],
            "client_errors": dict(sorted(self.ledger.errors.items())),
            "restarts": dict(sorted(self.restarts.items())),
            "attempts": dict(self.attempts),
        }

    def page(self) -> str:
        """Return the figures as Markdown."""
        facts = self.facts()
        counts = facts["counts"]
        recovery = facts["recovery_seconds"]
        lines = [
            f"Seed {self.seed}: {facts['seconds']:.0f} s of faults, all ended {facts['settled_seconds']:.1f} s after the last.",
            "",
            "| | |",
            "| --- | --- |",
            f"| load held | {counts.get('batches', 0)} batches, {counts.get('rows', 0):,} rows, {facts['rows_per_second']:.0f} rows/s |",
            f"| batches | {_listed(counts, 'batches ')} |",
            f"| lost, doubled, wrong | {facts['lost']}, {facts['doubled']}, {facts['wrong']} |",
            f"| faults survived | {facts['faults']} |",
            f"| from a fault to the next committed result | p50 {_time(recovery['p50'])}, p99 {_time(recovery['p99'])}, longest {_time(recovery['max'])} |",
            f"| longest time without a committed result | {facts['longest_pause_seconds']:.1f} s ({', '.join(facts['faults_in_longest_pause']) or 'no fault began in it'}) |",
            f"| errors that clients saw and got over | {_listed(facts['client_errors'])} |",
            f"| processes started again, by exit status | {_listed(facts['restarts'])} |",
            f"| leases ended as | {_listed(facts['attempts'])} |",
            f"| requests failed as `engine_crashed` that were alone with two killed workers | {counts.get('rows blamed', 0)} |",
            "",
            "| fault | times | p50 | longest |",
            "| --- | --- | --- | --- |",
        ]
        by_kind = facts["recovery_seconds_by_kind"]
        for kind, times in facts["faults_by_kind"].items():
            found = by_kind.get(kind, {})
            lines.append(f"| {kind} | {times} | {_time(found.get('p50'))} | {_time(found.get('max'))} |")
        return "\n".join([*lines, *(f"\n**{problem}**" for problem in facts["problems"]), ""])


QUANTILES = {"p50": 0.5, "p99": 0.99, "max": 1.0}


def _rank(times: Sequence[float], share: float) -> float | None:
    """Return the time that a share of all are not above (nearest rank)."""
    return round(times[math.ceil(share * len(times)) - 1], 3) if times else None


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.2f} s"


def _listed(counts: dict[str, int], prefix: str = "") -> str:
    found = [
        f"{count} {name.removeprefix(prefix)}" for name, count in counts.items() if name.startswith(prefix) and count
    ]
    return ", ".join(found) or "none"
