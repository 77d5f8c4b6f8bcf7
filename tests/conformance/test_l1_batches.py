"""L1: the batch is created, fails validation, and lists what is wrong; nothing runs"""

from typing import Any

import pytest
from conformance.lines import jsonl, without
from conformance.user import User


def only(problems: list[dict[str, Any]]) -> tuple[Any, ...]:
    """Return code, param and line of the one problem."""
    (problem,) = problems
    return problem["code"], problem["param"], problem["line"]


def test_input_file_missing(user: User) -> None:
    """Not refused at the call: `invalid_request`, param `file_id`, line null, `Cannot find file …`."""
    problems = user.problems_of(user.create("file-0000000000000000000000"))
    assert only(problems) == ("invalid_request", "file_id", None)
    assert "Cannot find file" in problems[0]["message"]


def test_line_is_no_json(user: User) -> None:
    """`invalid_json_line`, param null, the line's number, `This line is not parseable as valid JSON.`"""
    problems = user.problems(user.make.data(1) + b"{nope\n")
    assert only(problems) == ("invalid_json_line", None, 2)
    assert problems[0]["message"] == "This line is not parseable as valid JSON."


@pytest.mark.parametrize("name", ["custom_id", "method", "url", "body"])
def test_parameter_missing(user: User, name: str) -> None:
    """`missing_required_parameter` with the line, `Missing required parameter: '…'.`: custom_id, method, url, body."""
    problems = user.problems([user.make.row("a"), without(user.make.row("b"), name)])
    assert only(problems) == ("missing_required_parameter", name, 2)
    assert problems[0]["message"] == f"Missing required parameter: '{name}'."


@pytest.mark.parametrize("name", ["model", "messages"])
def test_body_parameter_missing(user: User, name: str) -> None:
    """`invalid_request`, param `body.model` or `body.messages`, with the line, `… parameter is required.`"""
    row = user.make.row("b")
    problems = user.problems([user.make.row("a"), {**row, "body": without(row["body"], name)}])
    assert only(problems) == ("invalid_request", f"body.{name}", 2)
    assert problems[0]["message"] == f"{name.capitalize()} parameter is required."


@pytest.mark.parametrize("url", ["/v1/embeddings", "/v1/completions"])
def test_url_is_not_the_endpoint(user: User, url: str) -> None:
    """`invalid_url`, param `url`, with the line, `The URL provided for this request does not match the batch endpoint.`"""
    problems = user.problems([user.make.row("a"), {**user.make.row("b"), "url": url}])
    assert only(problems) == ("invalid_url", "url", 2)
    assert "does not match the batch endpoint" in problems[0]["message"]


def test_model_unknown(user: User) -> None:
    """`model_not_found`, param `body.model`, with the line, `The provided model '…' is not supported by the Batch API.`"""
    problems = user.problems([user.make.row("a", model="no-such-model")])
    assert only(problems) == ("model_not_found", "body.model", 1)
    assert problems[0]["message"] == "The provided model 'no-such-model' is not supported by the Batch API."


def test_streaming(user: User) -> None:
    """`streaming_unsupported`, param `body.stream`, with the line, `… Streaming is not supported in the Batch API.`"""
    problems = user.problems([user.make.row("a"), user.make.row("b", stream=True)])
    assert only(problems) == ("streaming_unsupported", "body.stream", 2)
    assert problems[0]["message"].endswith("Streaming is not supported in the Batch API.")


def test_custom_id_twice(user: User) -> None:
    """Fails with the line of the second; `duplicate_custom_id` where Azure's name is used."""
    problems = user.problems([user.make.row("a"), user.make.row("b"), user.make.row("a")])
    assert only(problems)[2] == 3


def test_two_models(user: User) -> None:
    """One model a file: fails with the line of the other, `model_mismatch` or `model_not_found`."""
    problems = user.problems([user.make.row("a"), user.make.row("b", model="no-such-model")])
    assert [each["line"] for each in problems] == [2]
    assert problems[0]["code"] in ("model_mismatch", "model_not_found")


def test_all_lines_are_listed(user: User) -> None:
    """Every bad line is listed, not just the first."""
    good = user.make.rows(2)
    bad = [without(user.make.row("b"), "custom_id"), {**user.make.row("c"), "url": "/v1/nope"}, user.make.row("row-0")]
    problems = user.problems(jsonl(good) + b"{nope\n" + jsonl(bad))
    assert sorted({each["line"] for each in problems}) == [3, 4, 5, 6]


def test_only_blank_lines(user: User) -> None:
    """A file without a request is refused: at the upload (400), or the batch fails."""
    user.unusable(b"\n\n")


def test_50001_requests(large: None, user: User) -> None:
    """More than 50,000 requests: refused at the upload (400, 413), or the batch fails."""
    user.unusable(user.make.data(50_001))


def test_enqueued_tokens(user: User, connect: Any) -> None:
    """`token_limit_exceeded`, param and line null, `Enqueued token limit reached for …`."""
    limited: User = connect(user.target.token_limited_api_key, "--token-limited-api-key")
    problems = limited.problems(limited.make.data(10))
    assert only(problems) == ("token_limit_exceeded", None, None)
    assert problems[0]["message"].startswith("Enqueued token limit reached for ")
