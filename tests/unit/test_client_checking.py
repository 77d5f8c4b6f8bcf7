"""`promptmill validate`: what a server would say (tests/acceptance/test_client.py compares the two)."""

from pathlib import Path

import pytest
from payloads import CHAT, COMPLETIONS, jsonl, numbered, request

from client import checking, estimating
from jobs.errors import InvalidRequest
from jobs.settings import Limits


def check(path: Path, data: bytes, **limits: int) -> checking.Report:
    path.write_bytes(data)
    return checking.check(path, None, Limits(**limits))


def told(report: checking.Report) -> list[tuple[str, int | None]]:
    return [(problem.code, problem.line) for problem in report.problems]


def test_a_good_file_has_no_problems(tmp_path: Path) -> None:
    report = check(tmp_path / "a", numbered(3))
    assert (report.endpoint, report.requests, report.models, report.problems) == (CHAT, 3, ["scripted"], [])


def test_all_problems_are_named_however_many(tmp_path: Path) -> None:
    assert told(check(tmp_path / "a", numbered(1) + b"{\n" * 2_000)) == [
        ("invalid_json_line", n) for n in range(2, 2_002)
    ]


def test_the_first_line_decides_what_the_batch_is_for(tmp_path: Path) -> None:
    elsewhere = {**request("b"), "url": COMPLETIONS}
    assert told(check(tmp_path / "a", jsonl([request("a"), elsewhere]))) == [("invalid_url", 2)]
    unknown = {**request("a"), "url": "/v1/nope"}
    assert told(check(tmp_path / "a", jsonl([unknown]))) == [("invalid_value", None)]


def test_a_file_that_no_server_takes_has_one_problem(tmp_path: Path) -> None:
    assert told(check(tmp_path / "a", b"")) == [("empty_file", None)]
    assert told(check(tmp_path / "a", b"PK\x03\x04")) == [("invalid_file_format", 1)]
    assert told(check(tmp_path / "a", numbered(3), max_file_bytes=100)) == [("file_too_large", None)]


def test_an_estimate_counts_text_by_the_rule(tmp_path: Path) -> None:
    path = tmp_path / "a"
    parts = [{"type": "text", "text": "x" * 8}, {"type": "image_url", "image_url": {"url": "data:"}}]
    rows = [request("a", "x" * 40, max_tokens=10), {**request("b"), "body": {"messages": [{"content": parts}]}}]
    path.write_bytes(jsonl(rows))
    count, name = estimating.counter(None, None)
    made = estimating.make(estimating.bodies(path), count, name, None, None)
    assert (made.rows, made.input_tokens) == (2, 10 + 2 + 2 * estimating.TOKENS_PER_TURN)
    assert (made.answer_tokens, made.rows_without_limit, made.seconds) == (10, 1, None)
    assert (made.answer_tokens_named, estimating.make(estimating.bodies(path), count, name, 7, None).answer_tokens) == (
        False,
        14,
    )


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"body": "\xff"}', "is no request"),
        (b'{"body": 1}', "is no request"),
        (b'{"body": {"max_tokens": "ten"}}', "max_tokens is no whole number"),
        (b'{"body": {"max_tokens": 5, "n": [2]}}', "n is no whole number"),
    ],
)
def test_an_estimate_names_a_line_that_it_cannot_read(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "a"
    path.write_bytes(numbered(1) + line)
    with pytest.raises(InvalidRequest, match=f"line 2:? {reason}"):
        list(estimating.bodies(path))
