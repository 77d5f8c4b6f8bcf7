"""One batch for each endpoint through real processes: a scripted worker, and a llama.cpp one that embeds."""

import math
from typing import Any

import pytest
import services
from anthropic.types import Message
from clients import User
from openai.types import Batch, CreateEmbeddingResponse
from openai.types.responses import Response
from payloads import CHAT, jsonl

EMBEDDER = {
    "PROMPTMILL_WORKER__ENGINE": "llamacpp",
    "PROMPTMILL_WORKER__LLAMACPP__MODEL_NAME": "embedder",
    "PROMPTMILL_WORKER__LLAMACPP__TASK": "embed",
    "PROMPTMILL_WORKER__LLAMACPP__POOLING": "mean",
    "PROMPTMILL_WORKER__LLAMACPP__CONTEXT_TOKENS": "256",
}


@pytest.fixture(scope="module")
def both(running: services.Stack) -> services.Stack:
    running.worker(**EMBEDDER)
    return running


@pytest.fixture
def user(both: services.Stack) -> User:
    return User(both)


def submit(user: User, url: str, *bodies: dict[str, Any], model: str = "scripted") -> Batch:
    rows = (
        {"custom_id": f"row-{number}", "method": "POST", "url": url, "body": {"model": model, **body}}
        for number, body in enumerate(bodies)
    )
    return user.submit(jsonl(rows), endpoint=url)


def run(user: User, url: str, *bodies: dict[str, Any], model: str = "scripted") -> tuple[Batch, list[dict[str, Any]]]:
    """Run a batch to its end; return it and the bodies of all answers, in the order of the requests."""
    batch = user.wait(submit(user, url, *bodies, model=model).id)
    assert (batch.status, batch.endpoint) == ("completed", url)
    results = user.results(batch)
    return batch, [results[f"row-{number}"]["response"]["body"] for number in range(len(bodies))]


def tokens(batch: Batch) -> tuple[int, int]:
    assert batch.usage
    return batch.usage.input_tokens, batch.usage.output_tokens


def test_responses(user: User) -> None:
    batch, (first, second, refused) = run(
        user,
        "/v1/responses",
        {"input": "two words", "instructions": "Echo."},
        {"input": [{"role": "user", "content": [{"type": "input_text", "text": "and three words"}]}]},
        {"input": "x", "previous_response_id": "resp_1"},
    )
    assert Response.model_validate(first).output_text == "two words"
    assert Response.model_validate(second).output_text == "and three words"
    error = refused["error"]
    assert (error["type"], error["param"], error["code"]) == (
        "invalid_request_error",
        "previous_response_id",
        "unsupported_parameter",
    )
    assert tokens(batch) == (5, 5)


def test_messages(user: User) -> None:
    turns = [{"role": "user", "content": "two words"}]
    batch, (answered, refused) = run(
        user, "/v1/messages", {"messages": turns, "max_tokens": 9}, {"messages": turns, "max_tokens": 9, "top_k": 5}
    )
    message = Message.model_validate(answered)
    assert (message.content[0].text, message.stop_reason) == ("two words", "end_turn")  # type: ignore[union-attr]
    assert refused["error"]["param"] == "top_k"
    assert tokens(batch) == (2, 2)


@pytest.mark.parametrize("model", ["scripted", "embedder"])
def test_embeddings(user: User, model: str) -> None:
    batch, (first, second) = run(user, "/v1/embeddings", {"input": "a"}, {"input": ["b", "c"]}, model=model)
    sizes = [len(CreateEmbeddingResponse.model_validate(body).data) for body in (first, second)]
    assert sizes == [1, 2]
    assert math.hypot(*first["data"][0]["embedding"]) == pytest.approx(1, abs=1e-3)
    assert tokens(batch) == (3, 0)


@pytest.mark.parametrize("model", ["scripted", "embedder"])
def test_scores(user: User, model: str) -> None:
    batch, (body,) = run(user, "/v1/score", {"queries": "a", "documents": ["a", "b"]}, model=model)
    same, other = (item["score"] for item in body["data"])
    assert other < same == pytest.approx(1, abs=1e-2)
    assert tokens(batch) == (3, 0)


def test_what_no_worker_serves_is_found_before_anything_runs(user: User) -> None:
    turns = {"messages": [{"role": "user", "content": "x"}]}
    for url, body, model in (
        (CHAT, turns, "embedder"),
        ("/v1/responses", {"input": "x"}, "embedder"),
        ("/v1/embeddings", {"input": "x"}, "nobody's"),
    ):
        batch = submit(user, url, body, model=model)
        assert batch.status == "failed"
        assert batch.errors and batch.errors.data
        (error,) = batch.errors.data
        assert (error.code, error.param) == ("model_not_found", "body.model")
        assert error.message and model in error.message
        assert (url in error.message) == (model == "embedder"), "a known model is told from an unknown one"
