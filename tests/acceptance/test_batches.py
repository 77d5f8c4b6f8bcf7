"""Batches through real processes: API, worker with the scripted engine, reconciler; the stock SDK on the outside."""

import asyncio
import json
import logging
import re
from typing import Any

import openai
import pytest
import services
from clients import User, done
from openai.types import Batch
from payloads import COMPLETIONS, jsonl, numbered, request
from sqlalchemy import text


@pytest.fixture
def user(running: services.Stack) -> User:
    return User(running)


def answer(row: dict[str, Any]) -> str:
    return str(row["response"]["body"]["choices"][0]["message"]["content"])


def test_the_main_job(user: User) -> None:
    data = numbered(1000)
    batch = user.submit(data, metadata={"team": "a"})
    batch = user.wait(batch.id)
    assert (batch.status, batch.model, batch.error_file_id) == ("completed", "scripted", None)
    assert batch.request_counts and batch.request_counts.model_dump() == {"total": 1000, "completed": 1000, "failed": 0}
    rows = user.rows(batch.output_file_id)
    assert [row["custom_id"] for row in rows] == [f"row-{number}" for number in range(1000)], "input order"
    assert [answer(row) for row in rows] == [f"text {number}" for number in range(1000)]
    assert batch.usage and batch.usage.output_tokens == sum(
        row["response"]["body"]["usage"]["completion_tokens"] for row in rows
    )
    assert user.sdk.files.content(batch.input_file_id).content == data
    assert batch.output_file_id
    output = user.sdk.files.retrieve(batch.output_file_id)
    assert (output.purpose, output.bytes) == ("batch_output", len(user.sdk.files.content(output.id).content))
    assert user.sdk.files.wait_for_processing(output.id).status == "processed"
    assert {file.id for file in user.sdk.files.list()} == {output.id, batch.input_file_id}


def test_completions(user: User) -> None:
    line = {**request("a"), "url": COMPLETIONS, "body": {"model": "scripted", "prompt": "hello there"}}
    batch = user.wait(user.submit(jsonl([line]), endpoint=COMPLETIONS).id)
    (row,) = user.rows(batch.output_file_id)
    assert row["response"]["body"]["choices"][0]["text"] == "hello there"


def test_one_bad_row_never_costs_its_neighbours(user: User) -> None:
    prompts = {3: "REJECT", 5: "ERROR"}
    batch = user.wait(user.submit(numbered(10, lambda number: prompts.get(number, "fine"))).id)
    assert batch.status == "completed"
    assert batch.request_counts and batch.request_counts.completed == 8
    errors = {row["custom_id"]: row for row in user.rows(batch.error_file_id)}
    assert errors["row-3"]["response"]["status_code"] == 400
    assert errors["row-3"]["response"]["body"]["error"]["code"] == "rejected"
    assert errors["row-5"]["response"]["status_code"] == 500
    assert errors["row-5"]["response"]["body"]["error"]["code"] == "engine_error"


def test_a_batch_whose_rows_all_fail_is_completed_without_output(user: User) -> None:
    batch = user.wait(user.submit(numbered(3, lambda _: "REJECT")).id)
    assert (batch.status, batch.output_file_id) == ("completed", None)
    assert len(user.rows(batch.error_file_id)) == 3


def test_bad_lines_fail_the_batch_before_anything_runs(user: User) -> None:
    batch = user.submit(jsonl([request("a")]) + b"{nope}\n" + jsonl([{"custom_id": "b"}]))
    assert batch.status == "failed"
    assert batch.errors and batch.errors.data
    assert [(error.code, error.line) for error in batch.errors.data] == [
        ("invalid_json_line", 2),
        ("missing_required_parameter", 3),
    ]


def long_batch() -> bytes:
    """Some requests end at once, in every shard; most would outlast the test."""
    return numbered(600, lambda number: "SLEEP 300" if number % 6 else "now")


def check_rest(user: User, batch: Batch, code: str) -> None:
    """Every request has an outcome: those that ended at once may have been in time, all others were not run."""
    results = user.results(batch)
    assert set(results) == {f"row-{number}" for number in range(600)}
    never_ran = {name for name, row in results.items() if row["error"] and row["error"]["code"] == code}
    answered = set(results) - never_ran
    assert len(answered) >= 20
    assert all(answer(results[name]) == "now" for name in answered)
    assert batch.request_counts and batch.request_counts.completed == len(answered)


def test_cancelling_keeps_what_is_done(user: User) -> None:
    """F93, F94."""
    batch = user.submit(long_batch())
    user.wait_for(batch.id, lambda batch: done(batch) >= 20)
    assert user.sdk.batches.cancel(batch.id).status in ("cancelling", "cancelled")
    batch = user.wait(batch.id, 60)
    assert batch.status == "cancelled"
    check_rest(user, batch, "batch_cancelled")
    user.sdk.batches.cancel(batch.id)


def test_an_expired_batch_delivers_what_is_done(running: services.Stack, user: User) -> None:
    """F96."""
    batch = user.submit(long_batch())
    user.wait_for(batch.id, lambda batch: done(batch) >= 20)
    engine = running.engine()
    with engine.begin() as connection:
        connection.execute(text("UPDATE batches SET expires_at = app_now() WHERE id = :id"), {"id": batch.id})
    engine.dispose()
    batch = user.wait(batch.id, 60)
    assert batch.status == "expired"
    check_rest(user, batch, "batch_expired")


def test_the_sdk_sees_errors_as_it_does_elsewhere(user: User) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        user.sdk.batches.retrieve("batch_nope")
    assert missing.value.request_id and missing.value.request_id.startswith("req_")
    with pytest.raises(openai.BadRequestError) as bad:
        user.sdk.batches.create(input_file_id="x", endpoint="/v1/nope", completion_window="24h")  # type: ignore[arg-type]
    assert (bad.value.param, bad.value.code, bad.value.type) == ("endpoint", "invalid_value", "invalid_request_error")
    with pytest.raises(openai.ConflictError):
        user.sdk.batches.cancel(user.submit(b"{}\n").id)
    with pytest.raises(openai.AuthenticationError):
        user.sdk.with_options(api_key="pm_x_y").files.list()


def test_pages_follow_each_other(user: User) -> None:
    made = [user.submit(numbered(1)).id for _ in range(5)]
    assert [batch.id for batch in user.sdk.batches.list(limit=2)] == made[::-1]


def test_the_asynchronous_sdk(running: services.Stack) -> None:
    async def job() -> str:
        async with openai.AsyncOpenAI(base_url=running.base_url, api_key=running.key()) as sdk:
            file = await sdk.files.create(file=("a.jsonl", numbered(3)), purpose="batch")
            batch = await sdk.batches.create(
                input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
            )
            while batch.status == "in_progress":
                await asyncio.sleep(0.1)
                batch = await sdk.batches.retrieve(batch.id)
            assert batch.output_file_id
            return (await sdk.files.content(batch.output_file_id)).text

    assert len(asyncio.run(job()).splitlines()) == 3


def test_no_prompt_and_no_secret_is_in_any_log_or_in_redis(running: services.Stack) -> None:
    key = running.key()
    user = User(running, key)
    prompts = {0: "CANARY-1", 1: "REJECT CANARY-2", 2: "ERROR CANARY-3", 3: "CANARY-4 \ud83d\ude00"}
    user.wait(user.submit(numbered(50, lambda number: prompts.get(number, "CANARY-5")) + b"\n").id)
    user.submit(jsonl([request("a")]) + b'{"CANARY-6": nope\n')
    logs = "".join(process.log.read_text() for process in running.processes)
    assert "shard_ended" in logs
    with running.redis() as broker:
        seen = [str(broker.dump(name)) for name in broker.scan_iter("*")]
    for text_ in (logs, *seen):
        assert "CANARY" not in text_
        assert key.rsplit("_", 1)[1] not in text_
        assert services.PASSWORD not in text_


def test_the_log_is_one_json_object_a_line(running: services.Stack, user: User) -> None:
    user.wait(user.submit(numbered(3)).id)
    for process in running.processes:
        # The last line may be half written.
        for line in process.log.read_text().split("\n")[:-1]:
            assert "event" in json.loads(line), line


def test_a_deleted_input_does_not_stop_the_batch(user: User) -> None:
    """F65."""
    batch = user.submit(numbered(300, lambda number: "SLEEP 1" if number < 50 else "x"))
    user.sdk.files.delete(batch.input_file_id)
    batch = user.wait(batch.id)
    assert batch.status == "completed"
    assert len(user.results(batch)) == 300


def test_the_example_in_the_readme_runs(
    running: services.Stack, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    from conftest import ROOT

    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 1
    code = blocks[0].replace("smollm2-135m-instruct", "scripted")
    monkeypatch.setenv("OPENAI_BASE_URL", running.base_url)
    monkeypatch.setenv("OPENAI_API_KEY", running.key())
    monkeypatch.chdir(tmp_path)
    logging.disable(logging.INFO)
    namespace: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), namespace)
    assert namespace["batch"].status == "completed"
