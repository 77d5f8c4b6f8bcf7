"""`/v1/score` in terms of embeddings: the cosine of two texts' vectors, as vLLM scores with embedding models. Pure.

Names and shapes: vLLM `entrypoints/pooling/scoring/protocol.py`, 0.26 to 0.32. The two sides are spelled in one of
four ways, and are 1:1, 1:N or N:N.
"""

import math
import operator
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import Field, model_validator

from jobs import outcomes
from workers.engines.base import Body
from workers.engines.parameters import MAX_EMBEDDING_INPUTS, Input
from workers.engines.strict import Strict

SPELLINGS = (("queries", "documents"), ("queries", "items"), ("text_1", "text_2"), ("data_1", "data_2"))
Texts = Input | Annotated[list[Input], Field(min_length=1, max_length=MAX_EMBEDDING_INPUTS // 2)]


class ScoreParameters(Strict):
    """`/v1/score`."""

    model: str
    queries: Texts | None = None
    documents: Texts | None = None
    items: Texts | None = None
    text_1: Texts | None = None
    text_2: Texts | None = None
    data_1: Texts | None = None
    data_2: Texts | None = None
    # Without effect here; clients send it all the same.
    user: str | None = None

    @model_validator(mode="after")
    def _fits(self) -> "ScoreParameters":
        given = {name for pair in SPELLINGS for name in pair if getattr(self, name) is not None}
        if given not in [set(pair) for pair in SPELLINGS]:
            message = f"the texts must be one of {', '.join(' and '.join(pair) for pair in SPELLINGS)}"
            raise ValueError(message)
        left, right = (len(side) for side in self.sides)
        if left not in (1, right):
            message = f"{left} texts cannot be paired with {right}: 1 with any number, or as many on both sides"
            raise ValueError(message)
        return self

    @property
    def spelling(self) -> tuple[str, str]:
        return next(pair for pair in SPELLINGS if all(getattr(self, name) is not None for name in pair))

    @property
    def sides(self) -> tuple[list[str], list[str]]:
        """The texts on the left and on the right."""
        left, right = (getattr(self, name) for name in self.spelling)
        return [left] if isinstance(left, str) else left, [right] if isinstance(right, str) else right


def to_embeddings(asked: ScoreParameters) -> Body:
    """Return the request for the vectors of all texts, those on the left first."""
    left, right = asked.sides
    return {"model": asked.model, "input": [*left, *right], "encoding_format": "float"}


def names(asked: ScoreParameters) -> Mapping[str, str]:
    """Map names of the embeddings' parameters to the client's."""
    left, right = asked.spelling
    count = len(asked.sides[0])
    lefts = {f"input.{number}": f"{left}.{number}" for number in range(count)}
    rights = {f"input.{number + count}": f"{right}.{number}" for number in range(len(asked.sides[1]))}
    # It is not said which text is meant; the long ones are on the right, as a rule.
    return {"input": right, **lefts, **rights}


def from_embeddings(asked: ScoreParameters, answer: Body) -> Body:
    """Return one score for each pair, in their order."""
    vectors = [item["embedding"] for item in sorted(answer["data"], key=lambda item: item["index"])]
    count = len(asked.sides[0])
    left, right = vectors[:count], vectors[count:]
    pairs = zip(left * len(right) if count == 1 else left, right, strict=True)
    tokens = outcomes.count_tokens(answer).input
    return {
        "id": f"score-{secrets.token_hex(16)}",
        "object": "list",
        "created": int(time.time()),
        "model": asked.model,
        "data": [{"index": index, "object": "score", "score": _cosine(*pair)} for index, pair in enumerate(pairs)],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0},
    }


def _cosine(left: Sequence[float], right: Sequence[float]) -> float:
    return sum(map(operator.mul, left, right), 0.0) / (math.hypot(*left) * math.hypot(*right))
