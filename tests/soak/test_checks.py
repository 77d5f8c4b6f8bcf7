"""The soak's own eyes: what is lost, doubled or wrong is seen; what was asked for is not."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai.types import Batch
from soak.ledger import Ledger
from soak.load import Program, Work
from soak.report import Report
from sqlalchemy import create_engine

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
def program(tmp_path: Path) -> Iterator[Program]:
    engine = create_engine("sqlite://")
    work = Work(["http://127.0.0.1:1/v1"], engine, Ledger(), tmp_path, threading.Event(), threading.Event())
    made = Program(work, "ada", "key", "1")
    yield made
    made.close()
    engine.dispose()


def answered(custom_id: str, text: str) -> dict[str, Any]:
    body = {"choices": [{"message": {"content": text}}]}
    return {"custom_id": custom_id, "error": None, "response": {"body": body}}


def failed(custom_id: str, code: str) -> dict[str, Any]:
    return {"custom_id": custom_id, "error": None, "response": {"body": {"error": {"code": code}}}}


GOOD = [answered("a", "word"), failed("b", "rejected"), failed("c", "engine_crashed")]


def verdicts(
    program: Program, rows: list[dict[str, Any]], status: str = "completed", **options: bool
) -> dict[str, int]:
    counts = {"total": 3, "completed": 1, "failed": len(rows) - 1}
    batch = Batch.model_validate(MADE | {"status": status, "request_counts": counts})
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


def test_a_request_blamed_for_the_antagonists_kills_is_counted_apart(program: Program) -> None:
    assert verdicts(program, [failed("a", "engine_crashed"), *GOOD[1:]])["wrong"] == 0
    assert program.ledger.counts["rows blamed"] == 1


def test_recovery_is_from_a_fault_to_the_next_commit() -> None:
    ledger = Ledger(committed=[10.5, 1.0, 3.0])
    faults = [(0.5, "a"), (1.0, "b"), (4.0, "a"), (11.0, "b")]
    report = Report(1, 11, 0, ledger, faults, ledger.counts, ledger.counts)
    assert report.recoveries == {"a": [0.5, 6.5], "b": [2.0]}
    assert report.facts()["recovery_seconds"] == {"p50": 2.0, "p99": 6.5, "max": 6.5}
    assert report.longest_pause == (7.5, ["a"])
