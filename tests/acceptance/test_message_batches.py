"""Message batches through real processes, with the stock `anthropic` SDK on the outside."""

import asyncio
import re
from collections.abc import Callable, Iterator
from typing import Any

import anthropic
import pytest
import services
from anthropic import Anthropic
from anthropic.types.messages import MessageBatch
from clients import User
from sqlalchemy import text


def address(stack: services.Stack) -> str:
    return stack.base_url.removesuffix("/v1")


@pytest.fixture
def sdk(running: services.Stack) -> Iterator[Anthropic]:
    with Anthropic(base_url=address(running), api_key=running.key(), max_retries=0) as client:
        yield client


def requests(count: int, prompt: Callable[[int], str] = lambda number: f"text {number}") -> list[Any]:
    return [
        {
            "custom_id": f"row-{number}",
            "params": {
                "model": "scripted",
                "max_tokens": 9,
                "messages": [{"role": "user", "content": prompt(number)}],
            },
        }
        for number in range(count)
    ]


def ended(sdk: Anthropic, batch_id: str) -> MessageBatch:
    def over() -> bool:
        return sdk.messages.batches.retrieve(batch_id).processing_status == "ended"

    services.wait_until(over, f"{batch_id} ends", 90)
    return sdk.messages.batches.retrieve(batch_id)


def results(sdk: Anthropic, batch_id: str) -> dict[str, Any]:
    found = list(sdk.messages.batches.results(batch_id))
    by_id = {each.custom_id: each.result for each in found}
    assert len(by_id) == len(found), "every custom_id once"
    return by_id


def answer(result: Any) -> str:
    assert result.type == "succeeded"
    return str(result.message.content[0].text)


def test_the_main_job(sdk: Anthropic) -> None:
    texts = {0: 'é "quoted"\n\\ \U0001f600', 1: "  \t"}
    batch = sdk.messages.batches.create(requests=requests(1000, lambda number: texts.get(number, f"text {number}")))
    assert batch.request_counts.processing + batch.request_counts.succeeded == 1000
    batch = ended(sdk, batch.id)
    assert batch.request_counts.model_dump() == {
        "processing": 0,
        "succeeded": 1000,
        "errored": 0,
        "canceled": 0,
        "expired": 0,
    }
    assert batch.ended_at and batch.ended_at >= batch.created_at
    found = results(sdk, batch.id)
    assert {name: answer(result) for name, result in found.items()} == {
        f"row-{number}": texts.get(number, f"text {number}") for number in range(1000)
    }
    assert found["row-7"].message.usage.output_tokens == 2
    assert found["row-7"].message.stop_reason == "end_turn"


def test_one_bad_row_never_costs_its_neighbours(sdk: Anthropic) -> None:
    prompts = {3: "REJECT", 5: "ERROR"}
    batch = sdk.messages.batches.create(requests=requests(10, lambda number: prompts.get(number, "fine")))
    counts = ended(sdk, batch.id).request_counts
    assert (counts.succeeded, counts.errored) == (8, 2)
    found = results(sdk, batch.id)
    refused, broken = found["row-3"], found["row-5"]
    assert (refused.type, refused.error.error.type) == ("errored", "invalid_request_error")
    assert refused.error.error.message == "The prompt asked to be refused."
    assert (broken.type, broken.error.error.type) == ("errored", "api_error")


def long_batch() -> list[Any]:
    """Some requests end at once, in every shard; most would outlast the test."""
    return requests(600, lambda number: "SLEEP 300" if number % 6 else "now")


def wait_for_some(running: services.Stack, batch_id: str) -> None:
    """The counts of this door tell nothing before the end; those of the other one do."""
    engine = running.engine()
    done = text("SELECT sum(completed) FROM shards WHERE batch_id = :id")

    def some() -> bool:
        with engine.connect() as connection:
            return bool(connection.execute(done, {"id": batch_id.replace("msgbatch_", "batch_")}).scalar_one() >= 20)

    services.wait_until(some, "some requests are done")
    engine.dispose()


def check_rest(sdk: Anthropic, batch: MessageBatch, kind: str) -> None:
    counts = batch.request_counts.model_dump()
    found = results(sdk, batch.id)
    assert set(found) == {f"row-{number}" for number in range(600)}
    answered = {name for name, result in found.items() if result.type == "succeeded"}
    assert len(answered) >= 20
    assert all(answer(found[name]) == "now" for name in answered)
    assert {result.type for name, result in found.items() if name not in answered} == {kind}
    assert (counts["succeeded"], counts[kind], sum(counts.values())) == (len(answered), 600 - len(answered), 600)


def test_cancelling_keeps_what_is_done(running: services.Stack, sdk: Anthropic) -> None:
    """F93."""
    batch = sdk.messages.batches.create(requests=long_batch())
    wait_for_some(running, batch.id)
    batch = sdk.messages.batches.cancel(batch.id)
    assert batch.cancel_initiated_at
    batch = ended(sdk, batch.id)
    check_rest(sdk, batch, "canceled")
    assert sdk.messages.batches.cancel(batch.id) == batch


def test_an_expired_batch_delivers_what_is_done(running: services.Stack, sdk: Anthropic) -> None:
    """F96."""
    batch = sdk.messages.batches.create(requests=long_batch())
    wait_for_some(running, batch.id)
    engine = running.engine()
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE batches SET expires_at = app_now() WHERE id = :id"),
            {"id": batch.id.replace("msgbatch_", "batch_")},
        )
    engine.dispose()
    check_rest(sdk, ended(sdk, batch.id), "expired")


def test_pages_follow_each_other_both_ways(sdk: Anthropic) -> None:
    made = [sdk.messages.batches.create(requests=requests(1)).id for _ in range(5)][::-1]
    assert [batch.id for batch in sdk.messages.batches.list(limit=2)] == made
    assert [batch.id for batch in sdk.messages.batches.list(limit=2, after_id=made[0])] == made[1:]
    backwards = sdk.messages.batches.list(limit=2, before_id=made[4])
    assert [[batch.id for batch in page.data] for page in backwards.iter_pages()] == [made[2:4], made[0:2]]


def test_a_deleted_batch_is_gone(stack: services.Stack) -> None:
    stack.api()
    stack.reconciler()
    stack.know_model("scripted")
    engine = stack.engine()
    left = text("SELECT (SELECT count(*) FROM lines) + (SELECT count(*) FROM results)")

    def swept() -> bool:
        with engine.connect() as connection:
            return not connection.execute(left).scalar_one()

    with Anthropic(base_url=address(stack), api_key=stack.key()) as sdk:
        batch = sdk.messages.batches.create(requests=requests(3))
        sdk.messages.batches.cancel(batch.id)
        assert ended(sdk, batch.id).request_counts.canceled == 3
        assert sdk.messages.batches.delete(batch.id).model_dump() == {"id": batch.id, "type": "message_batch_deleted"}
        with pytest.raises(anthropic.NotFoundError):
            sdk.messages.batches.retrieve(batch.id)
        assert list(sdk.messages.batches.list()) == []
    services.wait_until(swept, "its requests and results are removed")
    engine.dispose()


def test_the_sdk_sees_errors_as_it_does_elsewhere(sdk: Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as missing:
        sdk.messages.batches.retrieve("msgbatch_nope")
    assert missing.value.type == "not_found_error"
    assert missing.value.api_message == "No message batch found with id 'msgbatch_nope'."
    assert missing.value.request_id and missing.value.request_id.startswith("req_")
    with pytest.raises(anthropic.BadRequestError) as bad:
        sdk.messages.batches.create(requests=[*requests(1), {"custom_id": "b", "params": {}}])  # type: ignore[typeddict-item]
    assert bad.value.api_message == "requests.1.params.max_tokens: Field required."
    batch = sdk.messages.batches.create(requests=requests(1, lambda _: "SLEEP 300"))
    with pytest.raises(anthropic.ConflictError) as early:
        sdk.messages.batches.delete(batch.id)
    assert early.value.type == "conflict_error"
    sdk.messages.batches.cancel(batch.id)
    with pytest.raises(anthropic.AuthenticationError) as stranger:
        sdk.with_options(api_key="pm_x_y").messages.batches.list()
    assert stranger.value.type == "authentication_error"
    assert stranger.value.error_code == "invalid_api_key"


def test_the_asynchronous_sdk(running: services.Stack) -> None:
    async def job() -> list[str]:
        async with anthropic.AsyncAnthropic(base_url=address(running), auth_token=running.key()) as sdk:
            batch = await sdk.messages.batches.create(requests=requests(3))
            while batch.processing_status != "ended":
                await asyncio.sleep(0.1)
                batch = await sdk.messages.batches.retrieve(batch.id)
            assert [each.id async for each in sdk.messages.batches.list(limit=1)] == [batch.id]
            return sorted([answer(each.result) async for each in await sdk.messages.batches.results(batch.id)])

    assert asyncio.run(job()) == ["text 0", "text 1", "text 2"]


def test_both_doors_show_the_same_batch(running: services.Stack) -> None:
    key = running.key()
    with Anthropic(base_url=address(running), api_key=key) as sdk:
        made = ended(sdk, sdk.messages.batches.create(requests=requests(4, lambda number: "REJECT" * (number == 2))).id)
        user = User(running, key)
        batch = user.batch(made.id.replace("msgbatch_", "batch_"))
        assert batch.request_counts and batch.request_counts.model_dump() == {"total": 4, "completed": 3, "failed": 1}
        assert set(user.results(batch)) == set(results(sdk, made.id))
        retry = user.wait(
            user.sdk.batches.create(
                input_file_id=str(batch.error_file_id),
                endpoint="/v1/messages",  # type: ignore[arg-type]
                completion_window="24h",
            ).id
        )
        assert set(results(sdk, retry.id.replace("batch_", "msgbatch_"))) == {"row-2"}


def test_no_prompt_is_in_a_log(running: services.Stack, sdk: Anthropic) -> None:
    prompts = {0: "REJECT CANARY-1", 1: "ERROR CANARY-2"}
    ended(sdk, sdk.messages.batches.create(requests=requests(5, lambda number: prompts.get(number, "CANARY-3"))).id)
    for broken in ({"custom_id": "CANARY 4", "params": {}}, {"custom_id": "a", "params": "CANARY-5"}):
        with pytest.raises(anthropic.BadRequestError):
            sdk.messages.batches.create(requests=[broken])  # type: ignore[list-item]
    assert "CANARY" not in "".join(process.log.read_text() for process in running.processes)


def test_the_example_in_the_docs_runs(running: services.Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    from conftest import ROOT

    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/anthropic.md").read_text(), re.DOTALL)
    monkeypatch.setenv("ANTHROPIC_BASE_URL", address(running))
    monkeypatch.setenv("ANTHROPIC_API_KEY", running.key())
    namespace: dict[str, Any] = {}
    exec(compile(code.replace("smollm2-135m-instruct", "scripted"), "anthropic.md", "exec"), namespace)
    assert namespace["batch"].request_counts.succeeded == 2
    namespace["client"].close()
