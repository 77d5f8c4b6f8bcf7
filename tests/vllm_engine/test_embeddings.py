"""Vectors and scores are those of `vllm serve`, on SmolLM2, which was not made for it. What is tested is the way."""

from collections.abc import Iterator
from typing import Any

import pytest
from subjects import CHECKPOINTS, Served, Subject, comparable, started

from workers import endpoints
from workers.engines.base import Body

EMBEDDINGS, SCORE = "/v1/embeddings", "/v1/score"


@pytest.fixture(scope="module")
def subject() -> Iterator[Subject]:
    with started(model=str(CHECKPOINTS / "smollm2"), model_name="smol", task="embed") as made:
        yield made


@pytest.fixture(scope="module")
def served(subject: Subject) -> Served:
    return Served(subject)


def ours(subject: Subject, endpoint: str, body: Body) -> Body:
    return comparable(subject.do(endpoints.run(subject.engine, endpoint, body)))


@pytest.mark.parametrize(
    "body",
    [
        {"input": "a cat"},
        {"input": ["a cat", "two dogs and a very long road"]},
        {"input": [5, 6, 7]},
        {"input": [[5, 6], [7]]},
        {"input": "a cat", "encoding_format": "base64"},
    ],
)
def test_vectors_are_those_of_vllm_serve(subject: Subject, served: Served, body: Body) -> None:
    asked = {"model": "smol", **body}
    mine, theirs = ours(subject, EMBEDDINGS, asked), comparable(served.post(EMBEDDINGS, asked))
    assert mine.pop("data") == [nearly(item) for item in theirs.pop("data")]
    assert mine == theirs


def nearly(item: dict[str, Any]) -> dict[str, Any]:
    """Numbers depend a little on what else was in the step."""
    vector = item["embedding"]
    return item if isinstance(vector, str) else {**item, "embedding": pytest.approx(vector, abs=1e-5)}


@pytest.mark.parametrize(
    "body",
    [
        {"queries": "a cat", "documents": "two dogs"},
        {"text_1": "a cat", "text_2": ["two dogs", "a cat"]},
        {"queries": ["a cat", "rain"], "documents": ["two dogs", "snow"]},
    ],
)
def test_scores_are_those_of_vllm_serve(subject: Subject, served: Served, body: Body) -> None:
    asked = {"model": "smol", **body}
    mine, theirs = ours(subject, SCORE, asked), comparable(served.post(SCORE, asked))
    assert [item.pop("score") for item in mine["data"]] == pytest.approx(
        [item.pop("score") for item in theirs["data"]], abs=1e-4
    )
    assert mine == theirs
