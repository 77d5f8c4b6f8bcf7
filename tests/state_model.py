"""What the domain should come to: batches, shards and leases as plain values, without a database.

`tests/integration/test_state_machine.py` does the same things to this model and to the real domain, and compares.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

LEASE_SECONDS, WINDOW_SECONDS, MOST_DEATHS = 3_600, 86_400, 2
RUNS = ("in_progress", "cancelling")
Held = tuple[str, int]


@dataclass
class Shard:
    batch_id: str
    lines: list[int]
    state: str = "queued"
    token: int = 0
    until: float = 0
    hinted_at: float | None = None
    outcomes: dict[int, str | None] = field(default_factory=dict)
    """By line: None when the engine answered, else the code of the error."""
    written_by: dict[int, int] = field(default_factory=dict)
    attempts: dict[int, str | None] = field(default_factory=dict)
    """By token: why it ended, None while it has not."""
    aboard: dict[int, int] = field(default_factory=dict)
    """By token: the line up to which requests may have been started."""
    suspect_since: int | None = None
    """The token under which an engine died with these requests aboard."""

    def end_attempt(self, reason: str) -> None:
        self.attempts |= {token: reason for token, ended in self.attempts.items() if ended is None}

    @property
    def is_watched(self) -> bool:
        """Whether the end of its lease may have been the death of an engine."""
        return self.suspect_since is not None or self.token in self.aboard

    def deaths(self, line: int) -> int:
        since = [token for token in self.attempts if token > (self.suspect_since or 0)]
        return sum(self.attempts[token] in ("died", "lost") and self.aboard.get(token, 0) >= line for token in since)

    def cut(self, line: int, *, suspect: bool) -> "Shard | None":
        """Part with the requests behind `line`, if any of them is to be run."""
        behind = [each for each in self.lines if each > line]
        if set(behind) <= set(self.outcomes):
            return None
        rest = replace(
            self,
            lines=behind,
            outcomes={each: code for each, code in self.outcomes.items() if each > line},
            written_by={each: token for each, token in self.written_by.items() if each > line},
            attempts=dict(self.attempts),
            aboard=dict(self.aboard),
            suspect_since=self.token if suspect else None,
            state="queued",
            hinted_at=None,
        )
        self.lines = [each for each in self.lines if each <= line]
        self.outcomes = {each: code for each, code in self.outcomes.items() if each <= line}
        return rest

    def note(self, outcomes: dict[int, str | None]) -> None:
        fresh = {line: code for line, code in outcomes.items() if line not in self.outcomes}
        self.outcomes |= fresh
        self.written_by |= dict.fromkeys(fresh, self.token)


@dataclass
class Model:
    now: float = 0
    status: dict[str, str] = field(default_factory=dict)
    expires_at: dict[str, float] = field(default_factory=dict)
    shards: dict[str, Shard] = field(default_factory=dict)
    redis: list[str] = field(default_factory=list)

    def create(self, batch_id: str, shards: dict[str, list[int]]) -> None:
        self.status[batch_id] = "in_progress" if shards else "failed"
        self.expires_at[batch_id] = self.now + WINDOW_SECONDS
        self.shards |= {shard_id: Shard(batch_id, lines) for shard_id, lines in shards.items()}

    def of(self, batch_id: str, *states: str) -> list[Shard]:
        return [each for each in self.shards.values() if each.batch_id == batch_id and each.state in states]

    def counts(self, batch_id: str) -> tuple[int, int, int]:
        mine = [each for each in self.shards.values() if each.batch_id == batch_id]
        codes = [code for shard in mine for code in shard.outcomes.values()]
        return sum(len(shard.lines) for shard in mine), codes.count(None), len(codes) - codes.count(None)

    def is_open(self, batch_id: str) -> bool:
        return self.status[batch_id] == "in_progress" and self.now < self.expires_at[batch_id]

    def is_due(self, shard: Shard, seconds: float) -> bool:
        """Tell whether the hint went out that long ago, never, or at a time that has not come yet."""
        return shard.hinted_at is None or not 0 <= self.now - shard.hinted_at <= seconds

    def announce(self, seconds: float) -> None:
        due = {
            shard_id: shard
            for shard_id, shard in self.shards.items()
            if shard.state == "queued" and self.status[shard.batch_id] == "in_progress" and self.is_due(shard, seconds)
        }
        overdue = [shard_id for shard_id, shard in due.items() if shard.hinted_at is not None]
        if overdue and len(self.redis) >= len(overdue):
            due = {shard_id: shard for shard_id, shard in due.items() if shard.hinted_at is None}
        for shard in due.values():
            shard.hinted_at = self.now
        self.redis += due

    def claimable(self, hinted: str | None, seconds: float = 0) -> set[str]:
        """Return the shards of which a claim takes one. A hint gets its own, if that can be had."""
        free = {
            shard_id
            for shard_id, shard in self.shards.items()
            if self.is_open(shard.batch_id)
            and (
                shard.state == "queued"
                or (shard.state == "running" and shard_id == hinted and shard.until < self.now and not shard.is_watched)
            )
            and (hinted or self.is_due(shard, seconds))
        }
        return {hinted} if hinted in free else free

    def claim(self, shard_id: str) -> int:
        shard = self.shards[shard_id]
        shard.end_attempt("lost")
        shard.state, shard.token, shard.until = "running", shard.token + 1, self.now + LEASE_SECONDS
        shard.attempts[shard.token] = None
        if shard.suspect_since is not None:
            shard.aboard[shard.token] = shard.lines[-1]
        return shard.token

    def holder(self, held: Held) -> Shard | None:
        shard = self.shards[held[0]]
        return shard if (shard.state, shard.token) == ("running", held[1]) else None

    def renew(self, held: Held) -> bool | None:
        """Return whether the batch stops; None: the lease is lost."""
        if shard := self.holder(held):
            shard.until = self.now + LEASE_SECONDS
            return not self.is_open(shard.batch_id)
        return None

    def write(self, held: Held, outcomes: dict[int, str | None]) -> bool | None:
        """Return whether the shard is done; None: the lease is lost, and nothing was written."""
        if not (shard := self.holder(held)):
            return None
        shard.note(outcomes)
        if len(shard.outcomes) == len(shard.lines):
            shard.state = "done"
            shard.end_attempt("done")
        return shard.state == "done"

    def release(self, held: Held) -> str | None:
        if not (shard := self.holder(held)):
            return None
        state = self._give_back(shard)
        shard.end_attempt("released" if state == "queued" else "stopped")
        return state

    def _give_back(self, shard: Shard) -> str:
        shard.state, shard.hinted_at = "queued" if self.is_open(shard.batch_id) else "stopped", None
        return shard.state

    def over(self, *, watched: bool) -> set[str]:
        """Return the shards whose lease has ended."""
        over = [key for key, each in self.shards.items() if each.state == "running" and each.until < self.now]
        return {key for key in over if self.shards[key].is_watched == watched}

    def recover(self) -> set[str]:
        over = self.over(watched=False)
        for shard_id in over:
            self._give_back(self.shards[shard_id])
            self.shards[shard_id].end_attempt("lost")
        return over

    # Suspects. `new_id` is what the shard is called that is parted from another, if one is.

    def mark(self, held: Held, line: int) -> bool | None:
        """Return whether requests up to `line` may be started; None if the lease is lost."""
        shard, token = self.shards[held[0]], held[1]
        if shard.attempts[token] is not None:
            return None
        if may := self.is_open(shard.batch_id):
            shard.aboard[token] = max(shard.aboard.get(token, 0), line)
        return may

    def die(self, held: Held, line: int, new_id: str | None) -> str | None:
        if not (shard := self.holder(held)):
            return None
        shard.aboard[shard.token] = min(shard.aboard.get(shard.token, line), line)
        shard.end_attempt("died")
        return self._judge(shard, line, new_id, waits=False)

    def take_back(self, shard_id: str, new_id: str | None) -> str:
        shard = self.shards[shard_id]
        has_waited = shard.token not in shard.attempts
        shard.end_attempt("lost")
        line = shard.lines[-1] if has_waited else shard.aboard[shard.token]
        return self._judge(shard, line, new_id, waits=not has_waited)

    def _judge(self, shard: Shard, line: int, new_id: str | None, *, waits: bool) -> str:
        missing = [each for each in shard.lines if each not in shard.outcomes and self.is_open(shard.batch_id)]
        aboard = [each for each in missing if each <= line]
        if aboard and shard.suspect_since is not None and len(missing) == 1:
            return self._judge_one(shard, aboard[0], waits=waits)
        if aboard:
            was_suspect = shard.suspect_since is not None
            last = aboard[(len(aboard) - 1) // 2] if was_suspect else aboard[-1]
            if rest := shard.cut(last, suspect=was_suspect):
                assert new_id
                self.shards[new_id] = rest
            shard.suspect_since = shard.token
        return self._give_back(shard)

    def _judge_one(self, shard: Shard, line: int, *, waits: bool) -> str:
        if shard.deaths(line) < MOST_DEATHS:
            return self._give_back(shard)
        if waits:
            shard.token, shard.until = shard.token + 1, self.now + LEASE_SECONDS
        else:
            shard.note({line: "engine_crashed"})
            shard.state = "done"
        return shard.state

    def cancel(self, batch_id: str) -> bool:
        """Return whether it may be cancelled, or was."""
        if self.status[batch_id] == "in_progress":
            self.status[batch_id] = "cancelling"
            self.stop(self.of(batch_id, "queued"))
        return self.status[batch_id] in ("cancelling", "cancelled")

    def stop(self, shards: Iterable[Shard]) -> None:
        for shard in shards:
            shard.state = "stopped"

    def may_settle(self, batch_id: str) -> bool:
        stops = not self.is_open(batch_id)
        return self.status[batch_id] in RUNS and (stops or not self.of(batch_id, "queued", "running"))

    def settle(self, batch_id: str) -> str | None:
        """Return the status that the batch has ended with now; None if it goes on, or ended before."""
        if not self.may_settle(batch_id):
            return None
        if not self.is_open(batch_id):
            self.stop(self.of(batch_id, "queued"))
        if self.of(batch_id, "running"):
            return None
        stopped = self.of(batch_id, "stopped")
        cancelled = self.status[batch_id] == "cancelling"
        for shard in stopped:
            shard.note(dict.fromkeys(shard.lines, "batch_cancelled" if cancelled else "batch_expired"))
            shard.state = "done"
        self.status[batch_id] = "cancelled" if cancelled else "expired" if stopped else "completed"
        return self.status[batch_id]
