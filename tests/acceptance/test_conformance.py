"""The conformance suite: the command that runs it, and that it sees what servers are known to do differently."""

import json
import os
import subprocess
import uuid
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import services
from conformance import proxy, report
from conformance.proxy import Answer
from conftest import ROOT

from api.stack.program import promptmill

SUITE = ROOT / "tests" / "conformance"
BAD_BODY = json.dumps({"messages": [{"role": "user", "content": "REJECT"}]})


def conformance(base_url: str, key: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"OPENAI_BASE_URL": base_url, "OPENAI_API_KEY": key}
    command = [*promptmill("conformance"), *arguments]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)


def verdicts(base_url: str, key: str, cases: set[str], path: Path) -> dict[str, str]:
    """Return what the suite says of these cases, with the synchronous client."""
    wanted = " or ".join(f"test_{case} and sync" for case in sorted(cases))
    options = ["--model", "scripted", "--bad-body", BAD_BODY, "--patience", "20"]
    conformance(base_url, key, "--report", str(path), "--", *options, "-k", wanted)
    return {row.case: row.verdict for row in report.read(path).results if row.case in cases}


def test_the_command_writes_a_report(running: services.Stack, tmp_path: Path) -> None:
    key, path = running.key(), tmp_path / "report.md"
    done = conformance(running.base_url, key, "--report", str(path), "--", "-k", "happy_path or tenant")
    assert done.returncode == 0, done.stdout + done.stderr
    text = path.read_text()
    assert f"- Server: {running.base_url}" in text
    assert "| happy_path | A batch runs to `completed`" in text
    assert "| needs --other-api-key | not run |" in text
    assert key not in text + done.stdout + done.stderr


def test_a_case_that_fails_is_told_by_the_status_and_the_report(running: services.Stack, tmp_path: Path) -> None:
    path = tmp_path / "report.md"
    # Nobody serves this model, so that no batch runs.
    options = ["--model", "nope", "--report", str(path), "--", "-k", "happy_path"]
    assert conformance(running.base_url, running.key(), *options).returncode == 1
    assert "the batch is failed" in path.read_text()
    assert "| FAIL |" in path.read_text()


def test_a_server_must_be_named() -> None:
    assert conformance("", "").returncode == 2


Change = Callable[[str, Any], Any]


def warped(change: Change) -> proxy.Treat:
    """Return what changes the JSON objects that are answered; `change` gets the call and the object."""

    def treat(call: str, answer: Answer) -> Answer:
        try:
            found = json.loads(answer.content)
        except ValueError:
            return answer
        return replace(answer, content=json.dumps(_each(found, lambda each: change(call, each))).encode())

    return treat


def _each(found: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(found, dict) and isinstance(found.get("data"), list):
        return {**found, "data": [change(each) for each in found["data"]]}
    return change(found)


def field(kind: str, name: str, value: Callable[[dict[str, Any]], Any]) -> proxy.Treat:
    """Change one field of every object of a kind."""

    def change(_: str, each: Any) -> Any:
        if isinstance(each, dict) and each.get("object") == kind:
            return {**each, name: value(each)}
        return each

    return warped(change)


def without(kind: str, *names: str) -> proxy.Treat:
    def change(_: str, each: Any) -> Any:
        if isinstance(each, dict) and each.get("object") == kind:
            return {name: value for name, value in each.items() if name not in names}
        return each

    return warped(change)


def rows(change: Callable[[dict[str, Any]], dict[str, Any]]) -> proxy.Treat:
    """Change every row of a result file."""

    def treat(call: str, answer: Answer) -> Answer:
        if not call.endswith("/content"):
            return answer
        lines = [json.dumps(change(json.loads(line))) + "\n" for line in answer.content.splitlines()]
        return replace(answer, content="".join(lines).encode())

    return treat


def status(before: int, after: int) -> proxy.Treat:
    return lambda _, answer: replace(answer, status=after) if answer.status == before else answer


def body_of_errors(content: Callable[[dict[str, Any]], bytes]) -> proxy.Treat:
    def treat(_: str, answer: Answer) -> Answer:
        return replace(answer, content=content(json.loads(answer.content))) if answer.status >= 400 else answer

    return treat


def without_header(name: str) -> proxy.Treat:
    return lambda _, answer: replace(answer, headers=[each for each in answer.headers if each[0].lower() != name])


def refusal(answer: Answer) -> Answer:
    error = {"message": "That does not go here.", "type": "invalid_request_error", "param": None, "code": None}
    return replace(answer, status=400, content=json.dumps({"error": error}).encode())


def refused_at_create(call: str, answer: Answer) -> Answer:
    return refusal(answer) if call == "POST /v1/batches" and b'"status":"failed"' in answer.content else answer


def offset_after(call: str, answer: Answer) -> Answer:
    return refusal(answer) if "after=" in call else answer


def failed_when_all_rows_failed(batch: dict[str, Any]) -> str:
    return "failed" if batch["status"] == "completed" and not batch["output_file_id"] else str(batch["status"])


def completed_when_doubled(batch: dict[str, Any]) -> str:
    return "completed" if "duplicate_custom_id" in json.dumps(batch["errors"]) else str(batch["status"])


def first_error(batch: dict[str, Any]) -> Any:
    return batch["errors"] and {**batch["errors"], "data": batch["errors"]["data"][:1]}


def unnamed_list(batch: dict[str, Any]) -> Any:
    return batch["errors"] and {"data": batch["errors"]["data"]}


def failed_row_without_response(row: dict[str, Any]) -> dict[str, Any]:
    response = row["response"]
    failed = response and response["status_code"] >= 400
    return {**row, "response": {**response, "body": None}, "error": response["body"]["error"]} if failed else row


def body_as_text(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "response": {**row["response"], "body": json.dumps(row["response"]["body"])}}


# What other servers do, three servers full of it; in each, no wart is the reason for another's cases to fail.
WARTS: list[dict[str, tuple[proxy.Treat, set[str]]]] = [
    {
        "pages by an integer": (offset_after, {"101_batches_page_by_page", "files_page_by_page"}),
        "400 for the cancelling of a batch that has ended": (status(409, 400), {"cancel_completed", "cancel_failed"}),
        "files that stay uploaded": (field("file", "status", lambda _: "uploaded"), {"wait_for_processing"}),
        "files that live for 90 days": (
            field("file", "expires_at", lambda file: file["created_at"] + 90 * 86_400),
            {"default_expiry", "expires_after"},
        ),
        "expires_at that is no deadline": (
            field("batch", "expires_at", lambda batch: batch["created_at"] + 30 * 86_400),
            {"times"},
        ),
        "batches without all fields": (
            without("batch", "usage", "model", "cancelling_at", "cancelled_at"),
            {"all_fields_are_there", "usage_is_the_sum_of_the_rows"},
        ),
        "errors that are no list object": (field("batch", "errors", unnamed_list), {"line_is_no_json"}),
        "ids that are UUIDs": (field("batch", "output_file_id", lambda _: str(uuid.uuid4())), {"ids"}),
        "a failed row without its response": (rows(failed_row_without_response), {"row_refused"}),
    },
    {
        "FastAPI's errors": (
            body_of_errors(lambda body: json.dumps({"detail": body["error"]["message"]}).encode()),
            {"endpoint_unknown", "errors_have_the_envelope", "path_unknown"},
        ),
        "a 409 that is to be retried": (without_header("x-should-retry"), {"cancel_completed_is_one_request"}),
        "the first line error only": (field("batch", "errors", first_error), {"all_lines_are_listed"}),
        "doubled custom_ids": (field("batch", "status", completed_when_doubled), {"custom_id_twice"}),
        "failed when all rows failed": (field("batch", "status", failed_when_all_rows_failed), {"all_rows_fail"}),
        "an empty id for no file": (
            field("batch", "error_file_id", lambda batch: batch["error_file_id"] or ""),
            {"no_row_fails"},
        ),
        "bodies as text": (rows(body_as_text), {"row_succeeds", "row_refused"}),
    },
    {
        "plain text errors": (
            body_of_errors(lambda body: body["error"]["message"].encode()),
            {"metadata_value_is_no_string", "errors_have_the_envelope"},
        ),
        "line errors at creation": (refused_at_create, {"input_file_missing", "line_is_no_json"}),
        "long ids": (field("batch", "output_file_id", lambda batch: f"{batch['output_file_id']}{'x' * 64}"), {"ids"}),
    },
]


def chain(treats: Iterable[proxy.Treat]) -> proxy.Treat:
    def treat(call: str, answer: Answer) -> Answer | None:
        treated: Answer | None = answer
        for each in treats:
            treated = treated and each(call, treated)
        return treated

    return treat


@pytest.mark.parametrize("server", WARTS)
def test_what_servers_do_differently_is_seen(
    running: services.Stack, tmp_path: Path, server: dict[str, tuple[proxy.Treat, set[str]]]
) -> None:
    cases = set().union(*(cases for _, cases in server.values()))
    with proxy.serving(running.base_url, chain([treat for treat, _ in server.values()])) as way:
        found = verdicts(way.base_url, running.key(), cases, tmp_path / "results.json")
    assert found == dict.fromkeys(cases, "FAIL")


def test_a_proxy_that_changes_nothing_is_not_seen(running: services.Stack, tmp_path: Path) -> None:
    cases = set().union(*(cases for server in WARTS for _, cases in server.values()))
    with proxy.serving(running.base_url) as way:
        found = verdicts(way.base_url, running.key(), cases, tmp_path / "results.json")
    assert found == dict.fromkeys(cases, "pass")
