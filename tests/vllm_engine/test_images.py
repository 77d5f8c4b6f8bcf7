"""Images in vLLM: Gemma 3 with image tower, small and with random weights. What is tested is the way, not the eye."""

import asyncio
import math
from collections.abc import Iterator
from typing import Any

import pictures
import pytest
from subjects import CHAT, CHECKPOINTS, Served, Subject, comparable, started

from jobs import db
from jobs.errors import RequestRejected
from jobs.protocol import MESSAGES, RESPONSES
from jobs.settings import Images
from workers import endpoints
from workers.engines.base import Body
from workers.images.resolver import Resolver

RED = pictures.part(pictures.data_url(pictures.encoded()))
GREY = pictures.part(pictures.data_url(pictures.encoded(mode="L", size=(120, 40))))
QUESTION = pictures.text("What is this?")
AT_MOST = 2


@pytest.fixture(scope="module")
def subject() -> Iterator[Subject]:
    with started(model=str(CHECKPOINTS / "gemma3"), model_name="gemma", images_per_request=AT_MOST) as made:
        yield made


@pytest.fixture(scope="module")
def images(subject: Subject) -> Iterator[Resolver]:
    """Nothing here names a file."""
    made = Resolver(Images(), db.make_engine("postgresql://127.0.0.1:1/none", connections=1))
    yield made
    subject.do(made.close())


@pytest.fixture(scope="module")
def served(subject: Subject) -> Served:
    return Served(subject)


def refused(subject: Subject, content: Any) -> RequestRejected:
    with pytest.raises(RequestRejected) as caught:
        subject.chat(content)
    assert caught.value.status_code == 400
    return caught.value


def read(subject: Subject, *parts: dict[str, Any]) -> tuple[int, list[float]]:
    """Return the tokens of the prompt, and what the model makes of it, in numbers."""
    body = subject.chat(list(parts), max_tokens=4, logprobs=True)
    return body["usage"]["prompt_tokens"], [token["logprob"] for token in body["choices"][0]["logprobs"]["content"]]


def test_an_image_is_read(subject: Subject) -> None:
    assert subject.engine.takes_images()
    plain, _ = read(subject, QUESTION)
    with_red, red = read(subject, QUESTION, RED)
    # Four tokens, and what stands around them.
    assert with_red >= plain + 4
    with_grey, grey = read(subject, QUESTION, GREY)
    assert with_grey == with_red, "an image has one size"
    assert red != pytest.approx(grey, abs=1e-6)
    assert all(math.isfinite(number) for number in (*red, *grey))


@pytest.mark.parametrize("parts", [[QUESTION, RED], [GREY, QUESTION, RED]])
def test_images_mean_what_they_mean_to_vllm_serve(subject: Subject, served: Served, parts: list[Any]) -> None:
    asked = {"model": "gemma", "messages": pictures.user(*parts), "max_tokens": 4, "temperature": 0}
    assert comparable(subject.run(CHAT, asked)) == comparable(served.post(CHAT, asked))


def test_two_images_are_read_in_their_order(subject: Subject) -> None:
    one, _ = read(subject, QUESTION, RED)
    two, first = read(subject, QUESTION, RED, GREY)
    assert two > one
    _, second = read(subject, QUESTION, GREY, RED)
    assert first != pytest.approx(second, abs=1e-6)


def test_the_same_image_again_is_the_same(subject: Subject) -> None:
    """vLLM keeps what it made of an image; for another project, the caches of prompts are others."""
    again = [read(subject, RED, QUESTION, RED) for _ in range(2)]
    other = subject.chat([RED, QUESTION, RED], max_tokens=4, logprobs=True, tenant="other")
    logprobs = [token["logprob"] for token in other["choices"][0]["logprobs"]["content"]]
    assert again[0][0] == again[1][0] == other["usage"]["prompt_tokens"]
    assert again[0][1] == pytest.approx(again[1][1], abs=1e-3)
    assert again[0][1] == pytest.approx(logprobs, abs=1e-3)


def test_one_image_too_many_is_named(subject: Subject) -> None:
    error = refused(subject, [QUESTION, RED, GREY, RED])
    assert error.param == "messages.0.content.3"
    assert str(AT_MOST) in error.message


@pytest.mark.parametrize("word", ["<start_of_image>", "<image_soft_token>", "<end_of_image>"])
def test_what_stands_for_an_image_cannot_be_typed(subject: Subject, word: str) -> None:
    for content in (f"What is {word}?", [pictures.text(f"What is {word}?"), RED], [pictures.text(word)]):
        error = refused(subject, content)
        assert error.param == "messages.0"
        assert word in error.message
    assert subject.chat(word[1:])["choices"]


def test_what_the_template_refuses_is_in_the_messages(subject: Subject) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    with pytest.raises(RequestRejected) as caught:
        subject.run(CHAT, {"model": "gemma", "messages": turns})
    error = caught.value
    assert (error.status_code, error.param) == (400, "messages")
    assert "must alternate" in error.message


def run(subject: Subject, images: Resolver, endpoint: str, body: Body) -> Any:
    return subject.do(endpoints.run(subject.engine, endpoint, {"model": "gemma", **body}, images=images))


def test_images_come_through_every_endpoint_that_chats(subject: Subject, images: Resolver) -> None:
    # WEBP: it is drawn anew on the way.
    data = pictures.encoded("webp")
    url = pictures.data_url(data, "image/webp")
    chat = run(subject, images, CHAT, {"messages": pictures.user(QUESTION, pictures.part(url)), "max_tokens": 2})
    turn = {"role": "user", "content": [{"type": "input_image", "image_url": url, "detail": "auto"}]}
    response = run(subject, images, RESPONSES, {"input": [turn], "max_output_tokens": 2})
    source = {"type": "base64", "media_type": "image/webp", "data": url.partition(",")[2]}
    turn = {"role": "user", "content": [{"type": "image", "source": source}]}
    message = run(subject, images, MESSAGES, {"messages": [turn], "max_tokens": 2})
    assert chat["usage"]["prompt_tokens"] > response["usage"]["input_tokens"] > 4
    assert message["usage"]["input_tokens"] + (message["usage"].get("cache_read_input_tokens") or 0) > 4


def test_many_rows_with_images_run_side_by_side(subject: Subject, images: Resolver) -> None:
    async def all_at_once() -> list[Body]:
        bodies = [
            {"model": "gemma", "messages": pictures.user(QUESTION, *[RED, GREY][: number % 3]), "max_tokens": 3}
            for number in range(12)
        ]
        return await asyncio.gather(*(endpoints.run(subject.engine, CHAT, body, images=images) for body in bodies))

    tokens = [answer["usage"]["prompt_tokens"] for answer in subject.do(all_at_once())]
    assert tokens[0] < tokens[1] < tokens[2]
    assert tokens == tokens[:3] * 4


def test_a_broken_image_costs_its_row(subject: Subject, images: Resolver) -> None:
    broken = pictures.part(pictures.data_url(pictures.encoded()[:60]))
    with pytest.raises(RequestRejected) as caught:
        run(subject, images, CHAT, {"messages": pictures.user(QUESTION, broken)})
    assert caught.value.param == "messages.0.content.1.image_url.url"
    assert subject.chat([QUESTION, RED])["choices"]
