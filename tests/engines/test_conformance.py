"""What every engine must do. One suite; each engine brings its model and a prompt."""

import asyncio
import base64
import json
import math
import os
import struct
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pictures
import pytest
from anthropic.types import Message
from openai.types import CreateEmbeddingResponse
from openai.types.responses import Response, ResponseOutputMessage, ResponseOutputText

from jobs import db
from jobs.errors import RequestRejected
from jobs.settings import Images, LlamaCpp, Vllm, Worker
from workers import endpoints, engines
from workers.engines.base import Body, Engine, Load
from workers.images.resolver import Resolver

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
EMBEDDINGS, RESPONSES, SCORE, MESSAGES = "/v1/embeddings", "/v1/responses", "/v1/score", "/v1/messages"
SMALL = LlamaCpp(context_tokens=512, parallel_requests=2)
# The model was not made for embeddings, and says nothing of pooling.
EMBEDDER = LlamaCpp(context_tokens=512, parallel_requests=2, task="embed", pooling="mean", model_name="embedder")
LLAMACPP = {
    "llamacpp": Worker(engine="llamacpp", llamacpp=SMALL),
    "llamacpp that embeds": Worker(engine="llamacpp", llamacpp=EMBEDDER),
}
ON_CPU = Vllm(
    model=os.environ.get("PROMPTMILL_TEST_CHECKPOINT", ""),
    dtype="float32",
    eager=True,
    context_tokens=512,
    gpu_memory_share=0.2,
)
VLLM = {
    "vllm": Worker(engine="vllm", vllm=ON_CPU.model_copy(update={"model_name": "smol", "max_sequences": 4})),
    "vllm that embeds": Worker(
        engine="vllm", vllm=ON_CPU.model_copy(update={"model_name": "embedder", "max_sequences": 4, "task": "embed"})
    ),
}
# vLLM lives in an environment of its own: `make test-vllm`.
REAL, REAL_EMBEDDER = VLLM if os.environ.get("PROMPTMILL_TEST_ENGINE") == "vllm" else LLAMACPP
SETTINGS = {"scripted": Worker(engine="scripted")} | LLAMACPP | VLLM
GENERATING, EMBEDDING = ["scripted", REAL], ["scripted", REAL_EMBEDDER]


class Subject:
    """An engine under test, on a loop of its own."""

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self.is_real = name != "scripted"
        self.engine: Engine = self.do(lambda: make(name))
        self.do(self.engine.start)
        self.model = self.engine.models()[0]
        # Nothing here names a file.
        self.images = Resolver(Images(), db.make_engine("postgresql://127.0.0.1:1/none", connections=1))

    def stop(self) -> None:
        self.do(self.images.close)
        self.do(self.engine.stop)
        self.loop.close()

    def do(self, action: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(action(), 120))

    def chat(self, text: str = "Say hello.", **parameters: Any) -> Body:
        return self.ask(CHAT, messages=[{"role": "user", "content": text}], **parameters)

    def ask(self, endpoint: str, **parameters: Any) -> Body:
        # Deterministic, unless a test wants otherwise.
        body = {"model": self.model, "max_tokens": 8, "temperature": 0, **parameters}
        return self.run(endpoint, body)

    def run(self, endpoint: str, body: Body) -> Body:
        """Run a request as a worker does."""
        full = {"model": self.model, **body}
        answer: Body = self.do(lambda: endpoints.run(self.engine, endpoint, full, images=self.images))
        return answer

    def refused(self, endpoint: str, **body: Any) -> RequestRejected:
        with pytest.raises(RequestRejected) as caught:
            self.run(endpoint, body)
        return caught.value

    def rejection(self, **parameters: Any) -> RequestRejected:
        with pytest.raises(RequestRejected) as caught:
            self.chat(**parameters)
        return caught.value


async def make(name: str) -> Engine:
    return engines.make(SETTINGS[name])


@pytest.fixture(scope="module")
def subjects() -> Iterator[Callable[[str], Subject]]:
    """Give each engine by its name, started once."""
    made: dict[str, Subject] = {}

    def get(name: str) -> Subject:
        if name not in made:
            made[name] = Subject(name)
        return made[name]

    yield get
    for subject in made.values():
        subject.stop()


@pytest.fixture(params=GENERATING)
def subject(request: pytest.FixtureRequest, subjects: Callable[[str], Subject]) -> Subject:
    return subjects(request.param)


@pytest.fixture(params=[REAL])
def real(request: pytest.FixtureRequest, subjects: Callable[[str], Subject]) -> Subject:
    """An engine with a model."""
    return subjects(request.param)


@pytest.fixture(params=EMBEDDING)
def embedder(request: pytest.FixtureRequest, subjects: Callable[[str], Subject]) -> Subject:
    """An engine that serves embeddings."""
    return subjects(request.param)


def content(body: Body, choice: int = 0) -> str:
    return str(body["choices"][choice]["message"]["content"])


def test_a_chat_completion_has_the_shape_of_the_contract(subject: Subject) -> None:
    body = subject.chat()
    assert body["object"] == "chat.completion"
    assert isinstance(body["id"], str)
    assert isinstance(body["created"], int)
    assert body["model"] == subject.model
    (choice,) = body["choices"]
    assert {"index", "message", "finish_reason", "logprobs"} <= set(choice)
    assert choice["message"]["role"] == "assistant"
    assert choice["finish_reason"] in ("stop", "length")
    usage = body["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["prompt_tokens"] > 0


def test_a_completion_has_the_shape_of_the_contract(subject: Subject) -> None:
    body = subject.ask(COMPLETIONS, prompt="Once upon a time")
    assert body["object"] == "text_completion"
    (choice,) = body["choices"]
    assert isinstance(choice["text"], str)
    assert choice["logprobs"] is None
    assert body["usage"]["completion_tokens"] > 0


def test_many_requests_at_once_keep_their_answers(subject: Subject) -> None:
    async def all_at_once() -> list[Body]:
        bodies = [
            {"model": subject.model, "messages": [{"role": "user", "content": f"word {n}"}], "max_tokens": 2 + n % 3}
            for n in range(12)
        ]
        return await asyncio.gather(*(subject.engine.run(CHAT, body) for body in bodies))

    answers = subject.do(all_at_once)
    if subject.is_real:
        assert all(answer["usage"]["completion_tokens"] <= 2 + n % 3 for n, answer in enumerate(answers))
    else:
        assert [content(answer) for answer in answers] == [f"word {n}" for n in range(12)]


def test_an_idle_engine_is_healthy(subject: Subject) -> None:
    assert subject.engine.healthy()
    assert subject.engine.capacity() >= 1


def test_a_cancelled_request_leaves_room_for_the_next(subject: Subject) -> None:
    async def cancel() -> None:
        text = "SLEEP 60" if not subject.is_real else "Tell me a very long story."
        # Sixteen answers, so that no luck ends them all within a moment.
        body = {"model": subject.model, "messages": [{"role": "user", "content": text}], "n": 16}
        tasks = [asyncio.create_task(subject.engine.run(CHAT, body)) for _ in range(subject.engine.capacity())]
        await asyncio.sleep(0.3)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert all(task.cancelled() for task in tasks), "they were still running"

    subject.do(cancel)
    assert subject.chat()["choices"]


def test_a_request_that_is_refused_does_not_disturb_others(subject: Subject) -> None:
    async def both() -> tuple[Any, Any]:
        bad = {"model": subject.model, "messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}
        good = {"model": subject.model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
        return await asyncio.gather(
            subject.engine.run(CHAT, bad), subject.engine.run(CHAT, good), return_exceptions=True
        )

    refused, answered = subject.do(both)
    assert isinstance(refused, RequestRejected)
    assert refused.param
    assert answered["choices"]


def test_system_prompts_and_earlier_turns_are_read(real: Subject) -> None:
    turns = [
        {"role": "system", "content": "You are terse."},
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": [{"type": "text", "text": "Bye."}]},
    ]
    longer = real.ask(CHAT, messages=turns)["usage"]["prompt_tokens"]
    assert longer > real.ask(CHAT, messages=turns[1:2])["usage"]["prompt_tokens"]


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_answers_are_as_long_as_asked(real: Subject, name: str) -> None:
    body = real.chat("Tell me a long story.", **{"max_tokens": None, name: 5})
    assert body["usage"]["completion_tokens"] == 5
    assert body["choices"][0]["finish_reason"] == "length"


def test_an_answer_ends_before_a_stop_string(real: Subject) -> None:
    free = content(real.chat("Tell me a story.", temperature=0, max_tokens=24))
    stop = free.split()[3]
    assert stop not in content(real.chat("Tell me a story.", temperature=0, max_tokens=24, stop=[stop]))
    assert stop not in content(real.chat("Tell me a story.", temperature=0, max_tokens=24, stop=stop))


def test_each_choice_says_which_stop_string_it_met(real: Subject) -> None:
    prompt = {"prompt": "Once upon a time", "max_tokens": 16}
    text = real.ask(COMPLETIONS, **prompt)["choices"][0]["text"]
    stop = text.split()[2]
    for choice in real.ask(COMPLETIONS, **prompt, stop=["nowhere", stop], n=2, temperature=0.01)["choices"]:
        assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)
    (choice,) = real.ask(COMPLETIONS, **prompt, stop="nowhere")["choices"]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("length", None)


def test_the_same_seed_gives_the_same_text(real: Subject) -> None:
    first, second, other = (
        content(real.chat("Tell me a story.", temperature=1.5, max_tokens=16, seed=seed)) for seed in (7, 7, 8)
    )
    assert first == second != other


def test_n_choices_are_counted_in_full(real: Subject) -> None:
    body = real.chat("Tell me a story.", n=3, temperature=1.5, max_tokens=6, seed=1)
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert len({content(body, number) for number in range(3)}) > 1
    assert body["usage"]["completion_tokens"] == 18


def test_log_probabilities_of_a_chat(real: Subject) -> None:
    tokens = real.chat(logprobs=True, top_logprobs=2, max_tokens=3)["choices"][0]["logprobs"]["content"]
    assert len(tokens) == 3
    for token in tokens:
        assert token["logprob"] <= 0
        assert len(token["top_logprobs"]) == 2
    plain = real.chat(logprobs=True, max_tokens=3)["choices"][0]["logprobs"]["content"]
    assert all(not token["top_logprobs"] for token in plain)


def test_log_probabilities_of_a_completion(real: Subject) -> None:
    choice = real.ask(COMPLETIONS, prompt="Once upon", logprobs=2, max_tokens=3)["choices"][0]
    logprobs = choice["logprobs"]
    assert {len(logprobs[name]) for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")} == {3}
    assert "".join(logprobs["tokens"]) == choice["text"]
    assert logprobs["text_offset"][0] == 0


SCHEMA = {
    "type": "object",
    "properties": {"label": {"type": "string", "enum": ["spam", "ham"]}},
    "required": ["label"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "weather"}}
JSON_SCHEMA = {"type": "json_schema", "json_schema": {"name": "label", "strict": True, "schema": SCHEMA}}


def test_an_answer_matches_its_schema(real: Subject) -> None:
    for seed in range(5):
        body = real.chat("Win money now!", response_format=JSON_SCHEMA, max_tokens=40, temperature=1.5, seed=seed)
        assert body["choices"][0]["finish_reason"] == "stop"
        assert json.loads(content(body))["label"] in ("spam", "ham")


def test_a_completion_matches_its_schema(real: Subject) -> None:
    body = real.ask(COMPLETIONS, prompt="Label: ", response_format=JSON_SCHEMA, max_tokens=40, temperature=1)
    assert json.loads(body["choices"][0]["text"])["label"] in ("spam", "ham")


def test_a_json_object_is_one(real: Subject) -> None:
    body = real.chat("A person as JSON.", response_format={"type": "json_object"}, max_tokens=200, temperature=0)
    if body["choices"][0]["finish_reason"] == "stop":
        assert isinstance(json.loads(content(body)), dict)
    assert content(body).lstrip().startswith(("{", "```json"))


@pytest.mark.parametrize(
    ("parameters", "param", "code"),
    [
        ({"frobnicate": 1}, "frobnicate", "unsupported_parameter"),
        ({"tools": [TOOL]}, "tools", "unsupported_parameter"),
        ({"chat_template": "x"}, "chat_template", "unsupported_parameter"),
        ({"grammar": "root ::= x"}, "grammar", "unsupported_parameter"),
        ({"temperature": -1}, "temperature", "invalid_value"),
        ({"temperature": "hot"}, "temperature", "invalid_value"),
        ({"temperature": float("nan")}, "temperature", "invalid_value"),
        ({"top_p": 0}, "top_p", "invalid_value"),
        ({"n": 1000}, "n", "invalid_value"),
        ({"n": True}, "n", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_tokens": 2**40}, "max_tokens", "invalid_value"),
        ({"max_tokens": 3.7}, "max_tokens", "invalid_value"),
        ({"stop": ""}, "stop", "invalid_value"),
        ({"stop": ["a"] * 5}, "stop", "invalid_value"),
        ({"stop": [1]}, "stop.0", "invalid_value"),
        ({"seed": -1}, "seed", "invalid_value"),
        ({"top_logprobs": 2}, None, "invalid_value"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
        ({"response_format": {"type": "yaml"}}, "response_format.type", "invalid_value"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "invalid_value"),
        ({"messages": [{"role": "user"}]}, "messages.0.content", "missing_required_parameter"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages.0.role", "invalid_value"),
    ],
)
def test_a_parameter_that_is_not_supported_is_named(
    real: Subject, parameters: dict[str, Any], param: str | None, code: str
) -> None:
    with pytest.raises(RequestRejected) as caught:
        real.ask(CHAT, **{"messages": [{"role": "user", "content": "hi"}], **parameters})
    assert (caught.value.param, caught.value.code, caught.value.status_code) == (param, code, 400)


def test_an_image_is_taken_or_refused_in_words(subject: Subject) -> None:
    messages = pictures.user(pictures.text("What is this?"), pictures.part(pictures.data_url(pictures.encoded())))
    if subject.engine.takes_images():
        assert subject.ask(CHAT, messages=messages)["choices"]
    else:
        error = subject.refused(CHAT, messages=messages)
        assert (error.message, error.param) == ("This model takes no images.", "messages.0.content.1")


@pytest.mark.parametrize(
    "image",
    [
        {"url": "http://127.0.0.1/"},
        {"url": "https://example.com/a.png"},
        {"url": "file:///etc/passwd"},
        {"url": "data:image/png;base64,AAAA"},
        {"file_id": "file-1", "url": "x"},
        "x",
    ],
)
def test_an_image_that_cannot_be_used_costs_its_row(subject: Subject, image: Any) -> None:
    error = subject.refused(CHAT, messages=pictures.user({"type": "image_url", "image_url": image}))
    assert error.status_code == 400
    assert error.param and error.param.startswith("messages.0.content.0")
    assert subject.chat()["choices"]


def test_an_engine_fetches_nothing_by_itself(real: Subject) -> None:
    """Even if it is asked past all that looks at images."""
    body = {"model": real.model, "messages": pictures.user(pictures.part("http://127.0.0.1/"))}
    with pytest.raises(RequestRejected) as caught:
        real.do(lambda: real.engine.run(CHAT, body))
    assert caught.value.param == "messages.0.content.0.image_url.url"


@pytest.mark.parametrize("schema", [{"enum": list(range(600))}, {"description": "x" * 70_000}])
def test_a_schema_that_would_stall_the_engine_is_refused(real: Subject, schema: dict[str, Any]) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    assert real.rejection(response_format=form).param == "response_format.json_schema.schema"


def test_a_schema_without_sense_fails_alone(real: Subject) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "#/nowhere"}}}
    assert real.rejection(response_format=form).status_code == 400
    assert real.chat()["choices"]


def test_a_prompt_beyond_the_context_fails_with_its_numbers(real: Subject) -> None:
    error = real.rejection(text="word " * 3000)
    assert (error.code, error.param) == ("context_length_exceeded", "messages")
    assert "512" in error.message
    with pytest.raises(RequestRejected) as caught:
        real.ask(COMPLETIONS, prompt="word " * 3000)
    assert caught.value.param == "prompt"


def test_null_means_default(real: Subject) -> None:
    body = real.chat(temperature=None, n=None, stop=None, response_format=None, logprobs=None, seed=None, user=None)
    assert len(body["choices"]) == 1


def test_an_engine_runs_what_it_lists(subject: Subject, embedder: Subject) -> None:
    bodies: dict[str, Body] = {
        CHAT: {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2},
        COMPLETIONS: {"prompt": "hi", "max_tokens": 2},
        EMBEDDINGS: {"input": "hi"},
        RESPONSES: {"input": "hi", "max_output_tokens": 2},
        SCORE: {"queries": "hi", "documents": "ho"},
        MESSAGES: {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2},
    }
    for each in (subject, embedder):
        for endpoint in endpoints.served(each.engine):
            assert each.run(endpoint, bodies[endpoint])["model"] == each.model
    assert set(endpoints.served(subject.engine)) | set(endpoints.served(embedder.engine)) == set(bodies)


# Responses and messages.


# Sampled, some answers go on and on.
ASKED = {"instructions": "Be terse.", "temperature": 0.0}


def test_a_response(real: Subject) -> None:
    body = real.run(RESPONSES, {**ASKED, "input": "Say hello.", "max_output_tokens": 200})
    response = Response.model_validate(body)
    assert response.output_text
    assert (response.status, response.model) == ("completed", real.model)
    assert response.usage and response.usage.input_tokens > 5
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens


def test_a_response_that_was_cut_says_so(real: Subject) -> None:
    response = Response.model_validate(real.run(RESPONSES, {"input": "Tell me a story.", "max_output_tokens": 3}))
    assert (response.status, response.usage and response.usage.output_tokens) == ("incomplete", 3)
    assert response.incomplete_details and response.incomplete_details.reason == "max_output_tokens"


def test_a_response_matches_its_schema(real: Subject) -> None:
    form = {"type": "json_schema", "name": "label", "strict": True, "schema": SCHEMA}
    body = real.run(RESPONSES, {"input": "Win money now!", "text": {"format": form}, "max_output_tokens": 40})
    assert json.loads(Response.model_validate(body).output_text)["label"] in ("spam", "ham")


def test_log_probabilities_of_a_response(real: Subject) -> None:
    asked = {"input": "hi", "include": ["message.output_text.logprobs"], "top_logprobs": 2, "max_output_tokens": 3}
    (item,) = Response.model_validate(real.run(RESPONSES, asked)).output
    assert isinstance(item, ResponseOutputMessage) and isinstance(item.content[0], ResponseOutputText)
    assert [len(token.top_logprobs) for token in item.content[0].logprobs or ()] == [2, 2, 2]


def test_what_is_wrong_with_a_response_has_the_clients_name(real: Subject) -> None:
    image = [{"type": "input_image", "image_url": "data:image/png;base64,AAAA"}]
    error = real.refused(RESPONSES, input=[{"role": "user", "content": image}], instructions="x")
    assert error.param and error.param.startswith("input.0.content.0")
    form = {"type": "json_schema", "name": "x", "schema": {"enum": list(range(600))}}
    assert real.refused(RESPONSES, input="x", text={"format": form}).param == "text.format.schema"
    error = real.refused(RESPONSES, input="word " * 3000)
    assert (error.code, error.param) == ("context_length_exceeded", "input")


def test_its_load_is_what_it_runs(real: Subject) -> None:
    async def look() -> tuple[Load, Load]:
        body = {"model": real.model, "messages": [{"role": "user", "content": "Count."}], "max_tokens": 64}
        row = asyncio.create_task(real.engine.run(CHAT, body | {"temperature": 0}))
        while not (busy := real.engine.load()).running and not row.done():
            await asyncio.sleep(0.01)
        await row
        return busy, real.engine.load()

    busy, idle = real.do(look)
    assert (busy.running, busy.waiting) == (1, 0)
    assert (idle.running, idle.waiting) == (0, 0)


def test_a_message(real: Subject) -> None:
    turns = [{"role": "user", "content": [{"type": "text", "text": "Say hello."}]}]
    asked = {"messages": turns, "system": "Be terse.", "temperature": 0.0}
    message = Message.model_validate(real.run(MESSAGES, {**asked, "max_tokens": 200}))
    assert message.content[0].text  # type: ignore[union-attr]
    assert (message.stop_reason, message.model) == ("end_turn", real.model)
    again = Message.model_validate(real.run(MESSAGES, {**asked, "max_tokens": 2}))
    assert (again.stop_reason, again.usage.output_tokens) == ("max_tokens", 2)
    first, second = (each.usage.input_tokens + (each.usage.cache_read_input_tokens or 0) for each in (message, again))
    assert first == second, "a cache has no say in the sum"


def test_a_message_says_which_stop_sequence_it_met(real: Subject) -> None:
    asked = {"messages": [{"role": "user", "content": "Tell me a story."}], "max_tokens": 24, "temperature": 0.0}
    stop = Message.model_validate(real.run(MESSAGES, asked)).content[0].text.split()[3]  # type: ignore[union-attr]
    message = Message.model_validate(real.run(MESSAGES, {**asked, "stop_sequences": ["nowhere", stop]}))
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", stop)
    assert stop not in message.content[0].text  # type: ignore[union-attr]


def test_a_message_matches_its_schema(real: Subject) -> None:
    form = {"type": "json_schema", "schema": SCHEMA}
    turns = [{"role": "user", "content": "Win money now!"}]
    body = real.run(MESSAGES, {"messages": turns, "output_config": {"format": form}, "max_tokens": 40})
    text = Message.model_validate(body).content[0].text  # type: ignore[union-attr]
    assert json.loads(text)["label"] in ("spam", "ham")


def test_a_prompt_is_not_in_the_answer(real: Subject) -> None:
    """What the engine tells beside the answer, when it is asked for the stop string, holds the prompt."""
    body = real.chat("Tell me about BANANAS.", stop=["x"])
    assert "BANANAS" not in json.dumps({**body, "choices": []})
    assert not set(body) & {"__verbose", "timings"}


# Embeddings and scores.


def vectors(body: Body) -> list[list[float]]:
    return [item["embedding"] for item in body["data"]]


def test_embeddings_have_the_shape_of_the_contract(embedder: Subject) -> None:
    body = embedder.run(EMBEDDINGS, {"input": ["a cat", "two dogs"], "user": "u"})
    parsed = CreateEmbeddingResponse.model_validate(body)
    assert [(item.index, item.object) for item in parsed.data] == [(0, "embedding"), (1, "embedding")]
    assert parsed.usage.prompt_tokens == parsed.usage.total_tokens > 0
    assert {"object", "data", "model", "usage"} <= set(body)
    assert set(body["data"][0]) == {"object", "index", "embedding"}
    for vector in vectors(body):
        assert math.hypot(*vector) == pytest.approx(1, abs=1e-3)


def test_an_input_has_the_same_embedding_however_it_is_sent(embedder: Subject) -> None:
    alone = vectors(embedder.run(EMBEDDINGS, {"input": "a cat"}))
    among = vectors(embedder.run(EMBEDDINGS, {"input": ["a dog", "a cat"]}))
    assert alone[0] == pytest.approx(among[1], abs=1e-2)
    assert among[0] != pytest.approx(among[1], abs=1e-2)


def test_tokens_may_be_embedded(embedder: Subject) -> None:
    body = embedder.run(EMBEDDINGS, {"input": [5, 6, 7]})
    assert (len(body["data"]), body["usage"]["prompt_tokens"]) == (1, 3)
    assert len(embedder.run(EMBEDDINGS, {"input": [[5, 6], [7]]})["data"]) == 2


def test_base64_holds_the_same_numbers(embedder: Subject) -> None:
    (plain,) = vectors(embedder.run(EMBEDDINGS, {"input": "a cat"}))
    (packed,) = vectors(embedder.run(EMBEDDINGS, {"input": "a cat", "encoding_format": "base64"}))
    assert list(struct.unpack(f"<{len(plain)}f", base64.b64decode(str(packed)))) == pytest.approx(plain, abs=1e-3)


@pytest.fixture
def real_embedder(subjects: Callable[[str], Subject]) -> Subject:
    return subjects(REAL_EMBEDDER)


@pytest.mark.parametrize(
    ("parameters", "param", "code"),
    [
        ({"input": ""}, "input", "invalid_value"),
        ({"input": []}, "input", "invalid_value"),
        ({"input": [""]}, "input.0", "invalid_value"),
        ({"input": [[]]}, "input.0", "invalid_value"),
        ({"input": ["a", 5]}, "input.1", "invalid_value"),
        ({"input": [5, "a"]}, "input.1", "invalid_value"),
        ({"input": [-1]}, "input.0", "invalid_value"),
        ({"input": 5}, "input", "invalid_value"),
        ({"input": {"prompt": "a"}}, "input", "invalid_value"),
        ({"input": ["a"] * 2049}, "input", "invalid_value"),
        ({"input": None}, "input", "missing_required_parameter"),
        ({"encoding_format": "hex"}, "encoding_format", "invalid_value"),
        ({"truncate_prompt_tokens": 5}, "truncate_prompt_tokens", "unsupported_parameter"),
    ],
)
def test_a_parameter_of_embeddings_that_is_not_taken_is_named(
    real_embedder: Subject, parameters: dict[str, Any], param: str, code: str
) -> None:
    error = real_embedder.refused(EMBEDDINGS, **{"input": "x", **parameters})
    assert (error.param, error.code, error.status_code) == (param, code, 400)


def test_an_input_beyond_the_context_fails_with_its_numbers(real_embedder: Subject) -> None:
    error = real_embedder.refused(EMBEDDINGS, input=["short", "word " * 3000])
    assert (error.code, error.param, error.status_code) == ("context_length_exceeded", "input", 400)
    # vLLM stops counting where the context ends.
    assert "512" in error.message and ("3001" in error.message or "at least 513" in error.message)
    error = real_embedder.refused(SCORE, queries="short", documents=["word " * 3000])
    assert (error.code, error.param) == ("context_length_exceeded", "documents")
    assert embedder_is_well(real_embedder)


def test_tokens_that_the_model_does_not_have_fail_alone(real_embedder: Subject) -> None:
    assert real_embedder.refused(EMBEDDINGS, input=[2_000_000_000]).status_code == 400
    assert embedder_is_well(real_embedder)


def test_a_model_that_cannot_be_cut_to_dimensions_says_so(real_embedder: Subject) -> None:
    error = real_embedder.refused(EMBEDDINGS, input="x", dimensions=64)
    assert (error.param, error.status_code) == ("dimensions", 400)


def embedder_is_well(subject: Subject) -> bool:
    return bool(subject.run(EMBEDDINGS, {"input": "x"})["data"])


def test_scores_are_higher_for_what_is_alike(embedder: Subject) -> None:
    body = embedder.run(SCORE, {"queries": "a cat", "documents": ["a cat", "quarterly tax returns of 1987"]})
    assert body["object"] == "list"
    same, other = (item["score"] for item in body["data"])
    assert same == pytest.approx(1, abs=1e-2)
    assert other < same
    assert body["usage"]["prompt_tokens"] > 0


def test_many_inputs_at_once(real_embedder: Subject) -> None:
    body = real_embedder.run(EMBEDDINGS, {"input": [f"text {number}" for number in range(40)]})
    assert [item["index"] for item in body["data"]] == list(range(40))
