"""The domain on real Postgres and real Redis against a model of it (`state_model`), in orders that Hypothesis chooses.

After each step every batch, shard, attempt and outcome is what the model says, and nothing that was visible has changed.
At the end of a run the faults stop: every batch ends, whoever still has an old lease writes nothing, and the invariants
hold. A restart of Postgres is played by ending all its connections, one of them in front of a COMMIT.

`HYPOTHESIS_PROFILE=long` looks for hours where the usual run takes seconds, and is never the same twice.
"""

import base64
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import invariants
import psycopg
import pytest
import redis
import services
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from payloads import CHAT, numbered
from pydantic import SecretStr
from sqlalchemy import Connection, text
from state_model import LEASE_SECONDS, MOST_DEATHS, Model

from jobs import batches, claims, db, fleet, leases, lifecycle, suspects
from jobs.claims import Claimant
from jobs.dispatch import Dispatcher
from jobs.errors import StateConflict, Unavailable
from jobs.leases import Lease, Written
from jobs.outcomes import Outcome, failure, success
from jobs.protocol import BATCH_ENDPOINTS
from jobs.settings import Settings
from jobs.states import TERMINAL

COMMON: dict[str, Any] = {
    "deadline": None,
    "database": None,
    "suppress_health_check": list(HealthCheck),
    "print_blob": True,
}
# The same runs every time: whether a commit is good is not decided by dice.
settings.register_profile("machine", max_examples=30, stateful_step_count=40, derandomize=True, **COMMON)
settings.register_profile("machine-long", max_examples=5_000, stateful_step_count=80, **COMMON)
PROFILE = settings.get_profile("machine-long" if os.environ.get("HYPOTHESIS_PROFILE") == "long" else "machine")

QUEUE = "promptmill:shards.scripted"
SHARD_REQUESTS, HINT_SECONDS = 10, 30
ABOARD = st.integers(1, SHARD_REQUESTS)
COUNTS = st.integers(1, 2 * SHARD_REQUESTS + 5)
# Far from the length of a lease and of a window, however long the test itself takes. A day ends every window; the clock
# also goes back.
SLACK_SECONDS = 900
PAUSES = {"a while": 1_900, "longer than a lease": LEASE_SECONDS + 200, "a day": 86_500, "back": -1_900}
# What one who holds a lease, or held it once, may do.
WORK = [
    *("beat", "finish", "finish_without_an_answer", "lose_postgres_before_the_commit", "drain", "crash"),
    *("start", "die"),
]
TABLES = "batches, files, lines, requests, results, shards, attempts, turns, calls"


@dataclass
class Holder:
    """Somebody who claimed a shard once, and the lines that he has not written yet."""

    lease: Lease
    lines: list[int]

    def take(self, count: int) -> dict[int, str | None]:
        """Return the outcomes of the next lines; every third one fails."""
        taken, self.lines = self.lines[:count], self.lines[count:]
        return {line: "rejected" if line % 3 == 0 else None for line in taken}


@dataclass
class World:
    """The real thing."""

    domain: Any
    database_url: str
    broker: "redis.Redis"
    dispatcher: Dispatcher

    def reset(self) -> None:
        self.domain.execute(f"TRUNCATE {TABLES} CASCADE")
        self.broker.flushall()
        self.set_clock(0)

    def set_clock(self, seconds: float) -> None:
        self.domain.later(f"{seconds} seconds")

    def restart_postgres(self) -> None:
        others = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = current_database()"
        with psycopg.connect(self.database_url, autocommit=True) as connection:
            connection.execute(f"{others} AND pid <> pg_backend_pid()")

    def write(self, lease: Lease, outcomes: dict[int, str | None], *, uncertain: bool = False) -> Any:
        with db.transaction(self.domain.engine) as connection:
            return self.write_in(connection, lease, outcomes, uncertain=uncertain)

    def write_in(self, connection: Any, lease: Lease, outcomes: dict[int, str | None], *, uncertain: bool) -> Any:
        group = Written(*lease.held, lease.batch_id, [_outcome(line, code) for line, code in outcomes.items()])
        return leases.write(connection, [group], uncertain=uncertain).get(lease.held)


def _outcome(line: int, code: str | None) -> Outcome:
    custom_id = f"row-{line - 1}"
    if code is None:
        return success(line, custom_id, {"x": line})
    return failure(line, custom_id, status_code=400, message="no", code=code)


class Machine(RuleBasedStateMachine):
    """What clients, workers, the reconciler and misfortune do."""

    holders: Bundle[Holder] = Bundle("holders")

    def __init__(self, world: World) -> None:
        super().__init__()
        world.reset()
        self.world, self.domain, self.model = world, world.domain, Model()
        self.heard: list[str] = []
        self.uploaded: list[tuple[str, int]] = []
        self.alive: list[Holder] = []
        self.seen: dict[tuple[str, int], bytes] = {}

    # Few rules with many ways each: with many rules most runs would never come to a worker that is late. Each run
    # begins with a batch, and somebody who holds a part of it.

    @initialize(target=holders, count=COUNTS)
    def begin(self, count: int) -> Any:
        self.upload(count)
        self.create(0)
        return self.hear()

    @rule(what=st.sampled_from(["upload", "create", "create_of_nothing", "cancel"]), which=COUNTS)
    def client(self, what: str, which: int) -> None:
        getattr(self, what)(which)

    @rule(target=holders, how=st.sampled_from(["hear", "hear_again", "poll"]))
    def claim(self, how: str) -> Any:
        return getattr(self, how)()

    @rule(holder=holders, what=st.sampled_from(WORK), count=ABOARD)
    def work(self, holder: Holder, what: str, count: int) -> None:
        getattr(self, what)(holder, count)

    @rule(target=holders, late=holders, then=st.sampled_from(WORK), swept=st.booleans())
    def replace(self, late: Holder, then: str, swept: bool) -> Any:
        """A worker sleeps for too long, another one takes over, before or after a sweep, and the first wakes up."""
        self.stall("longer than a lease")
        if swept:
            self.recover()
        holder = self._claim(late.lease.shard_id)
        self.stall("a while")
        self.work(late, then, 1)
        return holder

    @rule(target=holders, holder=holders, ends=st.lists(st.sampled_from(["die", "vanish"]), max_size=6), count=ABOARD)
    def poison(self, holder: Holder, ends: list[str], count: int) -> Any:
        """An engine dies with rows aboard, and so does that of whoever claims them next, and again."""
        claimed: Any = holder
        for end in ends:
            getattr(self, end)(claimed, count)
            claimed = self._claim(claimed.lease.shard_id)
            if claimed == multiple():
                break
        return claimed

    @rule(step=st.sampled_from(["announce", "recover", "finalize"]))
    def reconcile(self, step: str) -> None:
        getattr(self, step)()

    @rule(what=st.sampled_from(["flush_redis", "restart_postgres"]))
    def lose(self, what: str) -> None:
        getattr(self, what)()

    @rule(pause=st.sampled_from(sorted(PAUSES)))
    def stall(self, pause: str) -> None:
        """Everybody sleeps, or the clock is set back."""
        self.model.now += PAUSES[pause]
        self.world.set_clock(self.model.now)

    # Clients.

    def upload(self, count: int) -> None:
        self.uploaded.append((self.domain.upload(numbered(count)), count))

    def create(self, which: int) -> None:
        self._create(self.uploaded[which % len(self.uploaded)])

    def create_of_nothing(self, _: int) -> None:
        self._create(("file-unknown", 0))

    def _create(self, file: tuple[str, int]) -> None:
        file_id, count = file
        with db.transaction(self.domain.engine) as connection:
            # A worker was there lately, whatever the clock did.
            fleet.note_seen(connection, "worker_1")
        batch_id = str(self.domain.create(file_id))
        lines = list(range(1, count + 1))
        cut = [lines[start : start + SHARD_REQUESTS] for start in range(0, count, SHARD_REQUESTS)]
        shard_ids = [shard.id for shard in self.domain.shards(batch_id)]
        self.model.create(batch_id, dict(zip(shard_ids, cut, strict=True)))

    def cancel(self, which: int) -> None:
        batch_id = list(self.model.status)[which % len(self.model.status)]
        try:
            with db.transaction(self.domain.engine) as connection:
                batches.cancel(connection, self.domain.project_id, batch_id)
            cancelled = True
        except StateConflict:
            cancelled = False
        assert cancelled == self.model.cancel(batch_id)

    # Workers.

    def hear(self) -> Any:
        """Take a hint out of Redis and claim."""
        if not self.model.redis:
            self.announce()
        if not self.model.redis:
            return multiple()
        message = json.loads(self.world.broker.rpop(QUEUE))  # type: ignore[arg-type]
        (shard_id,), _, _ = json.loads(base64.b64decode(message["body"]))
        self.model.redis.remove(shard_id)
        self.heard.append(shard_id)
        return self._claim(shard_id)

    def hear_again(self) -> Any:
        """An old hint comes once more, whatever has become of its shard."""
        return self._claim(self.heard[-1])

    def poll(self) -> Any:
        """Claim what no hint has come for."""
        with db.transaction(self.domain.engine) as connection:
            lease = claims.claim_unhinted(connection, self._claimant(), hint_seconds=HINT_SECONDS)
        return self._claimed(lease, self.model.claimable(None, HINT_SECONDS))

    def _claim(self, hinted: str) -> Any:
        with db.transaction(self.domain.engine) as connection:
            lease = claims.claim(connection, hinted, self._claimant())
        return self._claimed(lease, self.model.claimable(hinted))

    def _claimant(self) -> Claimant:
        # Never seen: whoever loses a lease is taken for dead, and so is its engine.
        return Claimant("worker_2", ["scripted"], BATCH_ENDPOINTS, LEASE_SECONDS)

    def _claimed(self, lease: claims.Claimed, claimable: set[str]) -> Any:
        assert not isinstance(lease, claims.BeAlone), "everybody holds nothing else"
        assert (lease is None) == (not claimable)
        if lease is None:
            return multiple()
        assert lease.shard_id in claimable
        assert lease.token == self.model.claim(lease.shard_id)
        assert lease.endpoint == CHAT
        assert lease.is_suspect == (self.model.shards[lease.shard_id].suspect_since is not None)
        shard = self.model.shards[lease.shard_id]
        lines = self.domain.rows(lease)
        assert lines == [line for line in shard.lines if line not in shard.outcomes], (
            "what is committed never runs again"
        )
        self.alive.append(Holder(lease, lines))
        return self.alive[-1]

    def beat(self, holder: Holder, _: int) -> None:
        held = holder.lease.held
        with db.transaction(self.domain.engine) as connection:
            renewal = leases.renew(connection, [held], lease_seconds=LEASE_SECONDS).get(held)
        assert (renewal and renewal.stopping) == self.model.renew(held)

    def finish(self, holder: Holder, count: int) -> None:
        outcomes = holder.take(count)
        if outcomes:
            assert self.world.write(holder.lease, outcomes) == self.model.write(holder.lease.held, outcomes)

    def finish_without_an_answer(self, holder: Holder, count: int) -> None:
        """The COMMIT was done, its answer got lost, and the writer tries again."""
        outcomes = holder.take(count)
        if outcomes:
            first = self.world.write(holder.lease, outcomes)
            assert first == self.model.write(holder.lease.held, outcomes)
            shard, (_, token) = self.model.shards[holder.lease.shard_id], holder.lease.held
            # Whoever lost the lease, and whose shard was ended by the end of its batch, is told that it is done.
            ended = (shard.state, shard.token) == ("done", token) or None
            again = self.world.write(holder.lease, outcomes, uncertain=True)
            assert again == (ended if first is None else first)

    def lose_postgres_before_the_commit(self, holder: Holder, count: int) -> None:
        outcomes = dict.fromkeys(holder.lines[:count])
        if outcomes:
            with pytest.raises(Unavailable), db.transaction(self.domain.engine) as connection:
                self.world.write_in(connection, holder.lease, outcomes, uncertain=False)
                self.world.restart_postgres()

    def drain(self, holder: Holder, _: int) -> None:
        """Give the shard back, and end the batch if that was the last of it."""
        assert self.domain.release(holder.lease) == self.model.release(holder.lease.held)
        self._settle(holder.lease.batch_id)

    def crash(self, holder: Holder, _: int) -> None:
        """Do nothing more."""
        holder.lines.clear()

    def start(self, holder: Holder, count: int) -> None:
        """Have rows aboard."""
        if holder.lines:
            line = holder.lines[:count][-1]
            with db.transaction(self.domain.engine) as connection:
                renewal = leases.mark(connection, {holder.lease.held: line}).get(holder.lease.held)
            assert (renewal and not renewal.stopping) == self.model.mark(holder.lease.held, line)

    def die(self, holder: Holder, count: int) -> None:
        """The engine dies of rows that it has aboard, and the worker says so as its last words."""
        self.start(holder, count)
        if lines := holder.lines[:count]:
            held = holder.lease.held
            with db.transaction(self.domain.engine) as connection:
                state = suspects.died(connection, held, lines[-1], most_deaths=MOST_DEATHS)
            assert state == self.model.die(held, lines[-1], self._parted())
            self._settle(holder.lease.batch_id)
        holder.lines.clear()

    def vanish(self, holder: Holder, count: int) -> None:
        """Worker and engine die in one moment: only the end of the lease is seen."""
        self.start(holder, count)
        self.crash(holder, count)
        self.stall("longer than a lease")
        self.recover()

    def _parted(self) -> str | None:
        """Return the shard that was made last, if the model does not know it."""
        new = {row.id for row in self.domain.execute("SELECT id FROM shards")} - set(self.model.shards)
        assert len(new) <= 1
        return new.pop() if new else None

    # The reconciler.

    def announce(self) -> None:
        self.world.dispatcher.hint_overdue(HINT_SECONDS)
        self.model.announce(HINT_SECONDS)
        assert self.world.broker.llen(QUEUE) == len(self.model.redis)

    def recover(self) -> None:
        with db.transaction(self.domain.engine) as connection:
            assert set(leases.recover(connection)) == self.model.recover()
            lost = suspects.lost(connection)
        assert set(lost) == self.model.over(watched=True)
        for shard_id in lost:
            with db.transaction(self.domain.engine) as connection:
                state = suspects.take_back(connection, shard_id, most_deaths=MOST_DEATHS, grace_seconds=LEASE_SECONDS)
            assert state == self.model.take_back(shard_id, self._parted())

    def finalize(self) -> None:
        with db.transaction(self.domain.engine) as connection:
            due = set(lifecycle.to_settle(connection))
        assert due == {batch_id for batch_id in self.model.status if self.model.may_settle(batch_id)}
        for batch_id in due:
            self._settle(batch_id)

    def _settle(self, batch_id: str) -> None:
        assert self.domain.settle(batch_id) == self.model.settle(batch_id)

    # Misfortune.

    def flush_redis(self) -> None:
        self.world.broker.flushall()
        self.model.redis.clear()

    def restart_postgres(self) -> None:
        self.world.restart_postgres()

    # What must be.

    @invariant()
    def all_is_what_the_model_says(self) -> None:
        with db.transaction(self.domain.engine) as connection:
            self._batches(connection)
            self._shards(connection)
            self._attempts(connection)
            self._outcomes(connection)

    def _batches(self, connection: Connection) -> None:
        found, _ = batches.list_page(connection, self.domain.project_id, after=None, limit=1_000, show_partial=False)
        there = {each.id: (each.status, *each.request_counts.model_dump().values()) for each in found}
        assert there == {key: (status, *self.model.counts(key)) for key, status in self.model.status.items()}

    def _shards(self, connection: Connection) -> None:
        left = "extract(epoch FROM lease_until - app_now())::float AS left"
        rows = connection.execute(text(f"SELECT id, state, lease_token, suspect_since, {left} FROM shards")).all()
        expected = {
            shard_id: (shard.state, shard.token, shard.suspect_since) for shard_id, shard in self.model.shards.items()
        }
        assert {row.id: (row.state, row.lease_token, row.suspect_since) for row in rows} == expected
        for row in rows:
            if row.left is not None:
                # Less the time that the run itself has taken.
                assert 0 <= self.model.shards[row.id].until - self.model.now - row.left < SLACK_SECONDS

    def _attempts(self, connection: Connection) -> None:
        rows = connection.execute(text("SELECT shard_id, lease_token, end_reason, aboard_line FROM attempts"))
        expected = {
            (shard_id, token): (reason, shard.aboard.get(token))
            for shard_id, shard in self.model.shards.items()
            for token, reason in shard.attempts.items()
        }
        assert {(row.shard_id, row.lease_token): (row.end_reason, row.aboard_line) for row in rows} == expected

    def _outcomes(self, connection: Connection) -> None:
        statement = "SELECT batch_id, line_no, is_error, code, lease_token, content FROM results"
        rows = connection.execute(text(statement)).all()
        expected = {
            (shard.batch_id, line): (code is not None, code, shard.written_by[line])
            for shard in self.model.shards.values()
            for line, code in shard.outcomes.items()
        }
        there = {(row.batch_id, row.line_no): (row.is_error, row.code, row.lease_token) for row in rows}
        assert there == expected
        content = {(row.batch_id, row.line_no): bytes(row.content) for row in rows}
        # What was visible once stays as it is.
        assert content | self.seen == content
        self.seen = content

    def teardown(self) -> None:
        """The faults stop: everything ends, and those who come too late change nothing."""
        # Twice: a request that is to fail waits for a lease first.
        for _ in range(2):
            self.stall("longer than a lease")
            self.recover()
            while (holder := self.poll()) != multiple():
                self.finish(holder, SHARD_REQUESTS)
        self.finalize()
        assert set(self.model.status.values()) <= TERMINAL
        for late in self.alive:
            self.beat(late, 1)
            self.finish(late, SHARD_REQUESTS)
        self.all_is_what_the_model_says()
        invariants.check(self.domain.engine)


@pytest.fixture
def world(domain: Any, database_url: str, servers: services.Servers) -> Iterator[World]:
    configuration = Settings(database_url=SecretStr(database_url), redis_url=SecretStr(servers.redis_url))
    dispatcher = Dispatcher(domain.engine, configuration)
    with redis.Redis.from_url(servers.redis_url) as broker:
        yield World(domain, database_url, broker, dispatcher)
    dispatcher.close()


# A failure is made small first, which Hypothesis gives five minutes.
@pytest.mark.timeout(0 if PROFILE.max_examples > 1_000 else 600)
def test_the_domain_does_what_the_model_does(world: World) -> None:
    run_state_machine_as_test(lambda: Machine(world), settings=PROFILE)  # type: ignore[arg-type] # a factory will do
