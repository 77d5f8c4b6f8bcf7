from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import invariants
import logs
import pytest
import services

from jobs import db, leases
from jobs.errors import Unavailable
from jobs.leases import Lease
from jobs.outcomes import success
from workers.window import ShardRun
from workers.writer import Writer

FAR = float("inf")


class Reports:
    """A writer and what it said."""

    def __init__(self, domain: Any, flush_seconds: float) -> None:
        self.written: list[tuple[ShardRun, int]] = []
        self.lost: list[ShardRun] = []
        self.trouble: list[Exception] = []
        self.writer = Writer(
            domain.engine,
            flush_outcomes=4,
            flush_seconds=flush_seconds,
            patience_seconds=0.3,
            written=lambda run, outcomes: self.written.append((run, len(outcomes))),
            lost=self.lost.append,
            trouble=self.trouble.append,
        )
        self.writer.start()

    def put(self, run: ShardRun, *lines: int, last: bool = False) -> None:
        for line_no in lines:
            self.writer.put(run, success(line_no, f"row-{line_no - 1}", {}), last and line_no == lines[-1])

    def count(self) -> int:
        return sum(count for _, count in self.written)


@pytest.fixture
def started(domain: Any) -> Iterator[Callable[[float], Reports]]:
    made: list[Reports] = []

    def start(flush_seconds: float) -> Reports:
        made.append(Reports(domain, flush_seconds))
        return made[-1]

    yield start
    for each in made:
        each.writer.close()


def leased(domain: Any, count: int) -> ShardRun:
    lease: Lease = domain.claim(domain.shards(domain.new_batch(count))[0].id)
    return ShardRun(lease, deque(), lease_deadline=FAR, start_deadline=FAR)


def stored(domain: Any) -> list[int]:
    return [row.line_no for row in domain.execute("SELECT line_no FROM results ORDER BY line_no")]


# With a pause as long as this, only what else makes outcomes due can write them in time.
NEVER = 3_600.0


def test_a_shards_last_outcome_takes_those_before_it_along(domain: Any, started: Any) -> None:
    run, reports = leased(domain, 3), started(NEVER)
    reports.put(run, 1, 2, 3, last=True)
    services.wait_until(lambda: reports.count() == 3, "all are written")
    assert stored(domain) == [1, 2, 3]
    assert not reports.lost


def test_outcomes_are_written_when_a_transaction_is_full(domain: Any, started: Any) -> None:
    run, reports = leased(domain, 10), started(NEVER)
    reports.put(run, 1, 2, 3, 4)
    services.wait_until(lambda: reports.count() == 4, "the first transaction is written")
    reports.put(run, 5, 6, 7, 8)
    services.wait_until(lambda: reports.count() == 8, "the second one too")
    assert all(count <= 4 for _, count in reports.written)


def test_a_single_outcome_is_written_after_the_pause(domain: Any, started: Any) -> None:
    run, reports = leased(domain, 3), started(0.05)
    reports.put(run, 1)
    services.wait_until(lambda: reports.count() == 1, "it is written")


def test_closing_writes_what_waits(domain: Any, started: Any) -> None:
    run, reports = leased(domain, 10), started(NEVER)
    reports.put(run, 1, 2, 3)
    reports.writer.close()
    assert stored(domain) == [1, 2, 3]


def test_several_shards_end_in_one_transaction(domain: Any, started: Any) -> None:
    runs, reports = [leased(domain, 2), leased(domain, 2)], started(NEVER)
    reports.put(runs[0], 1, 2)
    reports.put(runs[1], 1, 2, last=True)
    services.wait_until(lambda: reports.count() == 4, "both are written")
    states = domain.execute("SELECT state, completed FROM shards")
    assert [(row.state, row.completed) for row in states] == [("done", 2), ("done", 2)]
    reasons = domain.execute("SELECT end_reason FROM attempts")
    assert [row.end_reason for row in reasons] == ["done", "done"]


def test_of_two_shards_the_one_that_was_lost_is_reported(domain: Any, started: Any) -> None:
    kept, lost, reports = leased(domain, 2), leased(domain, 2), started(NEVER)
    domain.execute("UPDATE shards SET lease_until = app_now() - interval '1s' WHERE id = :id", id=lost.lease.shard_id)
    with db.transaction(domain.engine) as connection:
        assert leases.recover(connection) == [lost.lease.shard_id]
    assert domain.claim(lost.lease.shard_id)
    reports.put(lost, 1, 2)
    reports.put(kept, 1, 2, last=True)
    services.wait_until(lambda: reports.count() == 4, "both are reported")
    assert reports.lost == [lost]
    assert domain.execute("SELECT count(*) AS rows FROM results")[0].rows == 2


def refusing(refused: ShardRun, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every transaction fail that holds outcomes of a shard."""
    write = leases.write

    def fail(connection: Any, groups: Any, **how: Any) -> Any:
        written = write(connection, groups, **how)
        if refused.lease.held in [group.held for group in groups]:
            raise error
        return written

    monkeypatch.setattr(leases, "write", fail)


def test_a_shard_that_cannot_be_written_costs_no_other(
    domain: Any, started: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good, reports = leased(domain, 2), leased(domain, 2), started(NEVER)
    refusing(bad, RuntimeError(), monkeypatch)
    reports.put(bad, 1, 2)
    reports.put(good, 1, 2, last=True)
    services.wait_until(lambda: reports.count() == 4, "both are reported")
    assert reports.lost == [bad]
    assert reports.trouble
    rows = domain.execute("SELECT batch_id FROM results")
    assert [row.batch_id for row in rows] == [good.lease.batch_id] * 2


def test_outcomes_that_always_take_too_long_are_given_up(
    domain: Any, started: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lease goes on: heartbeats keep it."""
    run, reports = leased(domain, 2), started(NEVER)
    refusing(run, Unavailable(), monkeypatch)
    reports.put(run, 1, 2, last=True)
    services.wait_until(lambda: reports.count() == 2, "it is reported")
    assert reports.lost == [run]
    assert [type(error) for error in reports.trouble] == [Unavailable]
    assert stored(domain) == []


def test_long_outcomes_do_not_wait_and_are_alone(domain: Any, started: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.writer.FLUSH_BYTES", 1_000_000)
    run, reports = leased(domain, 5), started(NEVER)
    for line_no in (1, 2):
        reports.writer.put(run, success(line_no, f"row-{line_no - 1}", {"x": "é" * 1_000_000}), False)
    services.wait_until(lambda: reports.count() == 2, "both are written")
    assert [count for _, count in reports.written] == [1, 1]
    lengths = domain.execute("SELECT octet_length(content) AS bytes FROM results")
    assert all(row.bytes > 2_000_000 for row in lengths)


def test_an_outcome_that_is_there_already_is_logged_in_the_words_that_the_invariants_look_for(
    domain: Any, started: Callable[[float], Reports], capfd: pytest.CaptureFixture[str]
) -> None:
    run = leased(domain, 3)
    domain.write(run.lease, [1])
    with logs.configured():
        reports = started(0.01)
        reports.put(run, 1, last=True)
        services.wait_until(lambda: reports.lost, "it is refused")
    said = capfd.readouterr().err.splitlines()
    assert [line for line in said if all(word in line for word in invariants.RUN_AGAIN)]
