"""What came of a soak, as JSON and as Markdown."""

import math
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

from soak.antagonist import Fault
from soak.ledger import Ledger
from soak.reruns import Rerun

# In so many seconds at least one fault must have met something.
SECONDS_A_BITE = 30


@dataclass(frozen=True)
class Report:
    seed: int
    seconds: float
    """From the first fault to the last."""
    settled_seconds: float
    """From the last fault until every batch had ended."""
    ledger: Ledger
    faults: Sequence[Fault]
    restarts: Counter[str]
    """How often a supervisor started a process again, by its name and exit status, negative for a signal."""
    attempts: Counter[str]
    """How leases ended."""
    reruns: Sequence[Rerun] = ()
    """What was taken from a worker and run again."""
    commit: str | None = None

    @property
    def is_good(self) -> bool:
        return not self.problems

    @property
    def problems(self) -> list[str]:
        """What must never be; a soak that did no harm, or looked at nothing, shows nothing either."""
        return [*self.ledger.problems, *self._shortcomings()]

    def _shortcomings(self) -> Iterator[str]:
        if len(self.bites) < self.seconds / SECONDS_A_BITE:
            yield f"too little harm: {len(self.bites)} faults met something in {self.seconds:.0f} s"
        if not self.ledger.counts["rows"]:
            yield "no row was looked at"

    @property
    def bites(self) -> list[Fault]:
        """The faults that are known to have met something."""
        return [fault for fault in self.faults if fault.has_bitten]

    @cached_property
    def recoveries(self) -> dict[str, list[float]]:
        """Seconds from each fault until the next results of any batch were committed, by kind, ascending."""
        committed, found = sorted(self.ledger.committed), defaultdict(list)
        for fault in self.faults:
            if (place := bisect_right(committed, fault.at)) < len(committed):
                found[fault.kind].append(committed[place] - fault.at)
        return {kind: sorted(times) for kind, times in sorted(found.items())}

    @cached_property
    def all_recoveries(self) -> list[float]:
        return sorted(time for times in self.recoveries.values() for time in times)

    @property
    def longest_pause(self) -> tuple[float, list[str]]:
        """The longest time between two commits of results, seconds, and the faults that began in it.

        Of the time of faults: afterwards a poison may be all that is left.
        """
        end = max((fault.at for fault in self.faults), default=0)
        committed = sorted(moment for moment in self.ledger.committed if moment <= end)
        if len(committed) < 2:
            return 0, []
        seconds, begin = max((after - before, before) for before, after in pairwise(committed))
        return seconds, [fault.kind for fault in self.faults if begin <= fault.at <= begin + seconds]

    @cached_property
    def reruns_since_end(self) -> list[float]:
        return sorted(rerun.seconds for rerun in self.reruns)

    @cached_property
    def reruns_since_death(self) -> list[float]:
        return sorted(rerun.since_death for rerun in self.reruns if rerun.since_death is not None)

    def facts(self) -> dict[str, Any]:
        """Return all figures, as JSON has them."""
        counts, times = self.ledger.counts, self.all_recoveries
        return {
            "seed": self.seed,
            "commit": self.commit,
            "seconds": round(self.seconds, 1),
            "settled_seconds": round(self.settled_seconds, 1),
            "counts": dict(sorted(counts.items())),
            "rows_per_second": round(counts["rows"] / (self.seconds + self.settled_seconds), 1),
            "lost": counts["lost"],
            "doubled": counts["doubled"],
            "wrong": counts["wrong"],
            "rows_blamed_for_kills": counts["rows blamed"],
            "problems": self.problems[:100],
            "faults_injected": len(self.faults),
            "faults_that_bit": len(self.bites),
            "faults_injected_by_kind": dict(sorted(Counter(fault.kind for fault in self.faults).items())),
            "faults_that_bit_by_kind": dict(sorted(Counter(fault.kind for fault in self.bites).items())),
            "death_to_rerun_seconds": _quantiles(self.reruns_since_death),
            "end_of_lease_to_rerun_seconds": _quantiles(self.reruns_since_end),
            "end_of_lease_to_rerun_seconds_by_reason": {
                reason: _quantiles(sorted(rerun.seconds for rerun in self.reruns if rerun.reason == reason))
                for reason in sorted({rerun.reason for rerun in self.reruns})
            },
            "fault_to_next_result_seconds": _quantiles(times),
            "fault_to_next_result_seconds_by_kind": {
                kind: _quantiles(found) for kind, found in self.recoveries.items()
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
        lines = [
            f"Seed {self.seed}, commit {self.commit or 'unknown'}: {facts['seconds']:.0f} s of faults, all ended {facts['settled_seconds']:.1f} s after the last.",
            "",
            "| | |",
            "| --- | --- |",
            f"| load held | {counts.get('batches', 0)} batches, {counts.get('rows', 0):,} rows, {facts['rows_per_second']:.0f} rows/s |",
            f"| batches | {_listed(counts, 'batches ')} |",
            f"| lost, doubled, wrong | {facts['lost']}, {facts['doubled']}, {facts['wrong']} |",
            f"| faults injected, of these met something | {facts['faults_injected']}, {facts['faults_that_bit']} |",
            f"| from the death of a worker to the next run of its shards | {_spread(facts['death_to_rerun_seconds'])} |",
            f"| from a lease that was lost, died or released to the next run of its shard | {_spread(facts['end_of_lease_to_rerun_seconds'])} |",
            *(
                f"| the same, of those that were {reason} | {_spread(found)} |"
                for reason, found in facts["end_of_lease_to_rerun_seconds_by_reason"].items()
            ),
            f"| from a fault to the next committed result of any batch | {_spread(facts['fault_to_next_result_seconds'])} |",
            f"| longest time without a committed result | {facts['longest_pause_seconds']:.1f} s ({', '.join(facts['faults_in_longest_pause']) or 'no fault began in it'}) |",
            f"| errors that clients saw and got over | {_listed(facts['client_errors'])} |",
            f"| processes started again, by exit status | {_listed(facts['restarts'])} |",
            f"| leases ended as | {_listed(facts['attempts'])} |",
            f"| requests failed as `engine_crashed` that were alone with two killed workers | {facts['rows_blamed_for_kills']} |",
            "",
            "| fault | injected | of these met something | p50 to the next result | longest |",
            "| --- | --- | --- | --- | --- |",
        ]
        by_kind, bites = facts["fault_to_next_result_seconds_by_kind"], facts["faults_that_bit_by_kind"]
        for kind, times in facts["faults_injected_by_kind"].items():
            found = by_kind.get(kind, {})
            lines.append(
                f"| {kind} | {times} | {bites.get(kind, 0)} | {_time(found.get('p50'))} | {_time(found.get('max'))} |"
            )
        return "\n".join([*lines, *(f"\n**{problem}**" for problem in facts["problems"]), ""])


QUANTILES = {"p50": 0.5, "p99": 0.99, "max": 1.0}


def _quantiles(times: Sequence[float]) -> dict[str, float | None]:
    """Return the quantiles of times in ascending order, and how many there are."""
    return {"count": len(times), **{name: _rank(times, share) for name, share in QUANTILES.items()}}


def _spread(times: dict[str, float | None]) -> str:
    return f"p50 {_time(times['p50'])}, p99 {_time(times['p99'])}, longest {_time(times['max'])}, of {times['count']}"


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
