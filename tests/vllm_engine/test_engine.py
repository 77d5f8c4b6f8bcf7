"""What the vLLM engine does beyond the suite of all engines, on SmolLM2 with a LoRA adapter."""

import asyncio
import json
import signal
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from subjects import CHAT, CHECKPOINTS, Served, Subject, comparable, core, started

from jobs.errors import EngineFatal, RequestRejected
from workers.engines import vllm

COMPLETIONS = "/v1/completions"
SCHEMA = {
    "type": "object",
    "properties": {"label": {"type": "string", "enum": ["spam", "ham"]}},
    "required": ["label"],
    "additionalProperties": False,
}
FORM = {"type": "json_schema", "json_schema": {"name": "label", "schema": SCHEMA}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
TURNS = [
    {"role": "system", "content": "You are terse."},
    {"role": "user", "content": "Hello."},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": [{"type": "text", "text": "Name a colour."}]},
]
QUESTION = [{"role": "user", "content": "Name three rivers."}]
HEEDED_AT_ONCE = {"backend": "xgrammar", "disable_any_whitespace": True, "enable_in_reasoning": True}
THOUGHTS = "Here is my thought process: It rains. Here is my response: Rhine"
STALL_SECONDS = 3


@pytest.fixture(scope="module")
def subject() -> Iterator[Subject]:
    with started(
        model=str(CHECKPOINTS / "smollm2"),
        model_name="smol",
        adapters={"smol-lora": CHECKPOINTS / "smollm2-lora"},
        tool_parser="hermes",
        reasoning_parser="granite",
        allow_grammars=True,
        # On CPUs, rows without an adapter get what is in the last place beside rows that have one; so it is left empty.
        # And this model never reasons by itself: vLLM would wait for the end of it before it heeds a schema.
        arguments={"max-loras": 2, "structured-outputs-config": HEEDED_AT_ONCE},
        stall_seconds=STALL_SECONDS,
    ) as made:
        yield made


# The same as `vllm serve`. With images: test_images.py; embeddings and scores: test_embeddings.py.


@pytest.fixture(scope="module")
def served(subject: Subject) -> Served:
    return Served(subject)


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        (CHAT, {"messages": QUESTION}),
        (CHAT, {"messages": TURNS}),
        (CHAT, {"messages": QUESTION, "max_completion_tokens": 5, "max_tokens": None}),
        (CHAT, {"messages": QUESTION, "stop": [","]}),
        (CHAT, {"messages": QUESTION, "logprobs": True, "top_logprobs": 3}),
        (CHAT, {"messages": QUESTION, "temperature": 0.9, "top_p": 0.8, "top_k": 20, "min_p": 0.05, "seed": 5}),
        (CHAT, {"messages": QUESTION, "temperature": 1.2, "n": 3, "seed": 5}),
        (CHAT, {"messages": QUESTION, "presence_penalty": 1.5, "frequency_penalty": 0.5, "repetition_penalty": 1.3}),
        (CHAT, {"messages": QUESTION, "ignore_eos": True, "min_tokens": 12, "max_tokens": 12}),
        (CHAT, {"messages": QUESTION, "response_format": FORM, "max_tokens": 30}),
        (CHAT, {"messages": QUESTION, "response_format": {"type": "json_object"}}),
        (CHAT, {"messages": QUESTION, "structured_outputs": {"choice": ["Rhine", "Elbe"]}}),
        (CHAT, {"messages": QUESTION, "structured_outputs": {"regex": "[a-z]{3} [0-9]"}}),
        (CHAT, {"messages": QUESTION, "structured_outputs": {"grammar": 'root ::= "x" | "y"'}}),
        (CHAT, {"messages": QUESTION, "tools": [TOOL], "tool_choice": "auto"}),
        (CHAT, {"messages": QUESTION, "tools": [TOOL], "tool_choice": "required", "max_tokens": 40}),
        (CHAT, {"messages": QUESTION, "model": "smol-lora"}),
        (COMPLETIONS, {"prompt": "Once upon a time", "logprobs": 2}),
        (COMPLETIONS, {"prompt": "Label: ", "response_format": FORM, "max_tokens": 30}),
    ],
)
def test_a_row_means_what_it_means_to_vllm_serve(
    subject: Subject, served: Served, endpoint: str, body: dict[str, Any]
) -> None:
    full = {"model": "smol", "max_tokens": 16, "temperature": 0, **body}
    assert comparable(subject.run(endpoint, full)) == comparable(served.post(endpoint, full))


def test_reasoning_stands_apart_from_the_answer_as_with_vllm_serve(subject: Subject, served: Served) -> None:
    asked = {"model": "smol", "messages": QUESTION, "structured_outputs": {"choice": [THOUGHTS]}, "temperature": 0}
    ours = subject.run(CHAT, asked)
    assert comparable(ours) == comparable(served.post(CHAT, asked))
    message = ours["choices"][0]["message"]
    assert (message["reasoning"].strip(), message["content"].strip()) == ("It rains.", "Rhine")


def test_a_forced_call_has_its_arguments_as_the_schema_says(subject: Subject) -> None:
    answer = subject.chat("Weather?", tools=[TOOL], tool_choice="required", max_tokens=60)
    (call, *_) = answer["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "weather"
    assert isinstance(json.loads(call["function"]["arguments"]), dict)


# Adapters.


def test_adapters_are_models_of_their_own(subject: Subject) -> None:
    assert subject.engine.models() == ["smol", "smol-lora"]
    base, adapted = (subject.chat("Name three rivers.", model=name) for name in subject.engine.models())
    assert (base["model"], adapted["model"]) == ("smol", "smol-lora")
    assert base["choices"][0]["message"]["content"] != adapted["choices"][0]["message"]["content"]


def test_rows_of_several_adapters_run_side_by_side(subject: Subject) -> None:
    names = ["smol", "smol-lora"] * 3

    async def all_at_once() -> list[Any]:
        bodies = [{"model": name, "messages": QUESTION, "max_tokens": 8, "temperature": 0} for name in names]
        return await asyncio.gather(*(subject.engine.run(CHAT, body) for body in bodies))

    texts = [answer["choices"][0]["message"]["content"] for answer in subject.do(all_at_once())]
    assert len(set(texts[::2])) == len(set(texts[1::2])) == 1
    assert texts[0] != texts[1]


# The context.


def test_an_answer_that_does_not_fit_is_refused_with_the_numbers(subject: Subject) -> None:
    with pytest.raises(RequestRejected) as caught:
        subject.chat(max_tokens=500)
    error = caught.value
    assert (error.code, error.param, error.status_code) == ("context_length_exceeded", "messages", 400)
    assert "512" in error.message and "500" in error.message and "33 in the prompt" in error.message


@pytest.mark.parametrize("endpoint", [CHAT, COMPLETIONS])
def test_an_answer_is_as_long_as_asked_whatever_vllm_takes_for_the_default(subject: Subject, endpoint: str) -> None:
    prompt: dict[str, Any] = {"messages": QUESTION} if endpoint == CHAT else {"prompt": "Once upon a time"}
    body = {"model": "smol", "max_tokens": 40, "temperature": 0, **prompt}
    for more in ({"ignore_eos": True}, {"min_tokens": 40}):
        usage = subject.run(endpoint, body | more)["usage"]
        assert usage["completion_tokens"] == 40


@pytest.mark.parametrize(
    ("prompt", "asked", "refuse", "bound"),
    [
        (100, None, True, 412),
        (100, 412, True, 412),
        (100, 413, True, None),
        (100, 413, False, 412),
        (511, 5, False, 1),
        (512, None, False, None),
    ],
)
def test_the_bound_of_an_answer(prompt: int, asked: int | None, refuse: bool, bound: int | None) -> None:
    if bound is None:
        with pytest.raises(vllm.NoRoom, match="512"):
            vllm._bound(prompt, asked, 512, refuse=refuse)
    else:
        assert vllm._bound(prompt, asked, 512, refuse=refuse) == bound


def test_an_answer_may_be_clamped_instead(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject.engine.llm, "long_answers", "clamp")
    answer = subject.chat("one two three four five " * 92, max_tokens=5_000, ignore_eos=True)
    usage = answer["usage"]
    assert usage["total_tokens"] == 512
    assert answer["choices"][0]["finish_reason"] == "length"


# Tenants.


def test_what_is_cached_of_one_project_serves_no_other(subject: Subject) -> None:
    """F117."""
    text = "Rivers and lakes and seas. " * 30
    cached = [
        (subject.chat(text, tenant=tenant, max_tokens=1)["usage"]["prompt_tokens_details"] or {}).get(
            "cached_tokens", 0
        )
        for tenant in ("one", "one", "two")
    ]
    assert cached[0] == cached[2] == 0
    assert cached[1] > 100


def test_the_front_end_listens_on_no_port(subject: Subject) -> None:
    """What vLLM's HTTP server has had of holes is not here."""
    assert subject.chat()["choices"]
    listening = [each for each in psutil.Process().net_connections("inet") if each.status == psutil.CONN_LISTEN]
    assert listening == []


# Progress, and the end.


def test_a_hung_engine_is_found_and_one_that_goes_on_is_well(subject: Subject) -> None:
    process = core()

    async def hang() -> None:
        row = asyncio.create_task(
            subject.engine.run(CHAT, {"model": "smol", "messages": QUESTION, "max_tokens": 60, "ignore_eos": True})
        )
        await asyncio.sleep(0.5)
        process.send_signal(signal.SIGSTOP)
        assert subject.engine.healthy(), "not yet: it did something a moment ago"
        deadline = time.monotonic() + 10 * STALL_SECONDS
        while subject.engine.healthy():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)
        process.send_signal(signal.SIGCONT)
        assert (await row)["usage"]["completion_tokens"] == 60
        assert subject.engine.healthy()

    subject.do(hang())


def test_steps_are_told(subject: Subject) -> None:
    seen: list[Any] = []
    steps = vllm.Steps(lambda: seen.append("step"))
    logger = steps.logger(None)
    scheduler = SimpleNamespace(num_running_reqs=3, num_waiting_reqs=2, kv_cache_usage=0.5)
    logger.record(scheduler, SimpleNamespace(num_preempted_reqs=1), None, engine_idx=0)
    logger.record(None, None)
    assert (steps.running, steps.waiting, steps.kv_use, steps.preempted, len(seen)) == (3, 2, 0.5, 1, 2)
    other = SimpleNamespace(num_running_reqs=4, num_waiting_reqs=0, kv_cache_usage=0.75)
    steps.logger(None, 1).record(other, None, engine_idx=1)
    assert (steps.running, steps.waiting, steps.kv_use) == (7, 2, 0.75)


def test_rows_of_an_engine_that_dies_have_no_outcome(subject: Subject) -> None:
    """Last here: it ends the engine."""

    async def die() -> None:
        body = {"model": "smol", "messages": QUESTION, "max_tokens": 300, "ignore_eos": True}
        rows = [asyncio.create_task(subject.engine.run(CHAT, body)) for _ in range(6)]
        await asyncio.sleep(1)
        core().kill()
        for row in rows:
            with pytest.raises(EngineFatal):
                await row
        with pytest.raises(EngineFatal):
            await subject.engine.run(CHAT, body)

    subject.do(die())
