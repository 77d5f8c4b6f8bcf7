"""The soak's own eyes: what is lost, doubled or wrong is seen; what was asked for is not."""

import os
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from integration.conftest import Domain
from openai.types import Batch
from payloads import jsonl, request
from soak import reruns
from soak.antagonist import Fault
from soak.ledger import Ledger
from soak.load import Program, Work
from soak.report import Report
from soak.reruns import Rerun
from sqlalchemy import Engine, text

from jobs import db, leases, suspects
from jobs.outcomes import failure

MADE = {
    "id": "batch_1",
    "object": "batch",
    "endpoint": "/v1/chat/completions",
    "input_file_id": "file-1",
    "completion_window": "24h",
    "created_at": 1,
}
ASKED = {"a": "word", "b": "REJECT word", "c": "CRASH word"}


@pytest.fixture
def program(engine: Engine, tmp_path: Path) -> Iterator[Program]:
    work = Work(["http://127.0.0.1:1/v1"], engine, Ledger(), tmp_path, threading.Event(), threading.Event())
    made = Program(work, "ada", "key", "1")
    yield made
    made.close()


@pytest.fixture
def domain(engine: Engine) -> Domain:
    return Domain(engine)


def answered(custom_id: str, text: str) -> dict[str, Any]:
    body = {"choices": [{"message": {"content": text}}]}
    return {"custom_id": custom_id, "error": None, "response": {"body": body}}


def failed(custom_id: str, code: str) -> dict[str, Any]:
    return {"custom_id": custom_id, "error": None, "response": {"body": {"error": {"code": code}}}}


GOOD = [answered("a", "word"), failed("b", "rejected"), failed("c", "engine_crashed")]


def verdicts(
    program: Program,
    rows: list[dict[str, Any]],
    status: str = "completed",
    batch_id: str = "batch_1",
    **options: bool,
) -> dict[str, int]:
    counts = {"total": 3, "completed": 1, "failed": len(rows) - 1}
    batch = Batch.model_validate(MADE | {"id": batch_id, "status": status, "request_counts": counts})
    program.judge(ASKED, batch, rows[:1], rows[1:], **options)
    return {name: program.ledger.counts[name] for name in ("lost", "doubled", "wrong")}


def test_what_was_asked_for_is_right(program: Program) -> None:
    assert verdicts(program, GOOD) == {"lost": 0, "doubled": 0, "wrong": 0}


def test_a_missing_row_is_lost(program: Program) -> None:
    assert verdicts(program, GOOD[:2])["lost"] == 1


def test_a_row_that_comes_twice_is_doubled(program: Program) -> None:
    assert verdicts(program, [*GOOD, GOOD[1]])["doubled"] == 1


def test_another_answer_is_wrong(program: Program) -> None:
    assert verdicts(program, [answered("a", "other"), *GOOD[1:]])["wrong"] == 1


def test_an_answer_in_place_of_a_refusal_is_wrong(program: Program) -> None:
    assert verdicts(program, [GOOD[0], failed("b", "engine_error"), GOOD[2]])["wrong"] == 1


def test_a_cancelled_row_is_right_only_in_a_batch_that_was_to_be_cancelled(program: Program) -> None:
    rows = [*GOOD[:2], failed("c", "batch_cancelled")]
    assert verdicts(program, rows, "cancelled", may_be_cancelled=True)["wrong"] == 0
    assert verdicts(program, rows, "cancelled")["wrong"] == 1


def shard_of(domain: Domain, batch_id: str, line: int) -> Any:
    (found,) = (shard for shard in domain.shards(batch_id) if shard.first_line <= line <= shard.last_line)
    return found


def lose(domain: Domain, batch_id: str, reason: str = "lost") -> None:
    """Let a worker claim what line 1 is in, and be killed with lines 1 and 2 aboard; or let it say that its engine died."""
    lease = domain.claim(shard_of(domain, batch_id, 1).id)
    assert lease
    with db.transaction(domain.engine) as connection:
        leases.mark(connection, {lease.held: 2})
        if reason == "died":
            suspects.died(connection, lease.held, 2, most_deaths=99)
            return
    domain.execute("UPDATE shards SET lease_until = app_now() - interval '1 s' WHERE id = :id", id=lease.shard_id)
    with db.transaction(domain.engine) as connection:
        suspects.take_back(connection, lease.shard_id, most_deaths=99, grace_seconds=60)


def blame(domain: Domain, batch_id: str) -> None:
    """Let line 1 fail, deserved or not."""
    lease = domain.claim(shard_of(domain, batch_id, 1).id)
    assert lease
    crashed = failure(1, "a", status_code=500, message="", code="engine_crashed")
    domain.write_outcomes(lease, [crashed])


@pytest.mark.parametrize(
    ("ends", "is_explained"),
    [
        # Of the first two, line 2 was aboard as well.
        ([], False),
        (["lost", "lost"], False),
        (["lost", "lost", "lost"], False),
        (["lost", "lost", "lost", "lost"], True),
        (["lost", "lost", "died", "died"], False),
        (["lost", "lost", "lost", "died"], False),
    ],
)
def test_a_request_that_is_blamed_is_wrong_unless_it_was_alone_with_two_killed_workers(
    program: Program, domain: Domain, ends: list[str], is_explained: bool
) -> None:
    batch_id = domain.create(domain.upload(jsonl(request(custom_id, prompt) for custom_id, prompt in ASKED.items())))
    for reason in ends:
        lose(domain, batch_id, reason)
    blame(domain, batch_id)
    found = verdicts(program, [failed("a", "engine_crashed"), *GOOD[1:]], batch_id=batch_id)
    assert found == {"lost": 0, "doubled": 0, "wrong": not is_explained}
    assert program.ledger.counts["rows blamed"] == is_explained


def test_everybody_blamed_is_seen(program: Program) -> None:
    """What a product would do that fails everything aboard when an engine dies."""
    rows = [failed(custom_id, "engine_crashed") for custom_id in ASKED]
    assert verdicts(program, rows)["wrong"] == 2, "all but the one that asked for it"


FAULTS = [Fault(0.5, "a", True), Fault(1.0, "b"), Fault(4.0, "a"), Fault(11.0, "b")]


def report(faults: list[Fault] = FAULTS, *, seconds: float = 11, rows: int = 3, **options: Any) -> Report:
    ledger = Ledger(counts=Counter(rows=rows), committed=[10.5, 1.0, 3.0])
    return Report(1, seconds, 0, ledger, faults, Counter(), Counter(), **options)


def test_the_next_result_is_counted_from_each_fault() -> None:
    made = report()
    assert made.recoveries == {"a": [0.5, 6.5], "b": [2.0]}
    assert made.facts()["fault_to_next_result_seconds"] == {"count": 3, "p50": 2.0, "p99": 6.5, "max": 6.5}
    assert made.longest_pause == (7.5, ["a"])


def test_recovery_is_until_the_same_work_runs_again() -> None:
    made = report(reruns=[Rerun("lost", 0.2, 4.5), Rerun("released", 0.1), Rerun("lost", 0.4, 5.5)], commit="abc")
    facts = made.facts()
    assert facts["end_of_lease_to_rerun_seconds"] == {"count": 3, "p50": 0.2, "p99": 0.4, "max": 0.4}
    assert facts["death_to_rerun_seconds"] == {"count": 2, "p50": 4.5, "p99": 5.5, "max": 5.5}
    by_reason = facts["end_of_lease_to_rerun_seconds_by_reason"]
    assert {reason: found["count"] for reason, found in by_reason.items()} == {"lost": 2, "released": 1}
    assert (facts["seed"], facts["commit"]) == (1, "abc")
    assert "Seed 1, commit abc" in made.page()


def test_faults_that_met_nothing_are_not_counted_as_harm() -> None:
    facts = report().facts()
    assert (facts["faults_injected"], facts["faults_that_bit"]) == (4, 1)
    assert (facts["faults_injected_by_kind"], facts["faults_that_bit_by_kind"]) == ({"a": 2, "b": 2}, {"a": 1})


@pytest.mark.parametrize(
    ("made", "is_good"),
    [(report(), True), (report(seconds=31), False), (report(rows=0), False), (report([], seconds=1), False)],
    ids=["enough", "too little harm", "no rows", "no harm"],
)
def test_a_soak_that_shows_nothing_is_not_good(made: Report, is_good: bool) -> None:
    assert made.is_good == is_good
    assert bool(made.facts()["problems"]) != is_good


def test_attempts_are_found_with_the_next_of_the_same_shard(domain: Domain) -> None:
    batch_id = domain.create(domain.upload(jsonl(request(custom_id, prompt) for custom_id, prompt in ASKED.items())))
    lose(domain, batch_id)
    lose(domain, batch_id)
    blame(domain, batch_id)
    with domain.engine.connect() as connection:
        (killed_at,) = connection.execute(
            text("SELECT extract(epoch FROM max(ended_at))::float8 FROM attempts WHERE end_reason = 'lost'")
        ).scalars()
        found = reruns.find(connection, [(os.getpid(), killed_at), (os.getpid(), 0.0), (1, killed_at)])
    # The first and the second attempt were cut together: they are one pair. The third shard was not run again.
    assert [rerun.reason for rerun in found] == ["lost", "lost"]
    assert all(rerun.seconds > 0 for rerun in found)
    assert sorted(rerun.since_death == rerun.seconds for rerun in found) == [False, True]
