"""Workloads: how long prompts and answers are, after published traces. Texts are common words, about a token each.

Weights may be random: every answer is as long as its row says (`ignore_eos`, `max_tokens`), so that both sides of a
comparison make the same tokens. `python bench/shapes.py translation 2000` prints rows for programs that take a file.
"""

import bisect
import json
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

WORDS = [
    "the",
    "river",
    "bank",
    "opened",
    "early",
    "and",
    "the",
    "old",
    "printer",
    "in",
    "the",
    "corner",
    "of",
    "a",
    "small",
    "office",
    "near",
    "our",
    "station",
    "kept",
    "working",
    "through",
    "every",
    "long",
    "winter",
    "night",
    "while",
    "people",
    "waited",
    "for",
    "news",
    "about",
    "trains",
    "letters",
    "music",
    "prices",
    "weather",
    "and",
    "a",
    "new",
    "bridge",
    "over",
    "the",
    "water",
    "where",
    "two",
    "boats",
    "lay",
]
SEED = 7


@dataclass(frozen=True)
class Shape:
    """Lengths in tokens, about. `lengths` draws (own part of the prompt, answer)."""

    source: str
    shared: int
    """Words of an instruction that prompts share."""
    lengths: Callable[[random.Random], tuple[int, int]]
    prefixes: int = 1
    """How many such instructions there are."""


def _lognormal(draw: random.Random, mu: float, sigma: float, low: int, high: int) -> int:
    return max(low, min(high, round(draw.lognormvariate(mu, sigma))))


def _paragraph(draw: random.Random) -> tuple[int, int]:
    text = _lognormal(draw, 3.80, 1.12, 4, 1_024)
    return text, max(4, min(1_024, round(text * 1.25 * draw.lognormvariate(0, 0.1))))


def _label(draw: random.Random) -> tuple[int, int]:
    return _lognormal(draw, 4.4, 0.5, 16, 400), draw.randint(4, 12)


def _sharegpt(draw: random.Random) -> tuple[int, int]:
    while True:
        asked, answer = round(draw.lognormvariate(5.05, 1.2)), round(draw.lognormvariate(4.85, 1.0))
        if 4 <= asked <= 1_024 and answer >= 4 and asked + answer <= 2_048:
            return asked, answer


def _quantiles(draw: random.Random, marks: tuple[tuple[float, int], ...]) -> int:
    """Draw from a distribution known by its quantiles, straight lines between them."""
    at = draw.random()
    after = min(bisect.bisect([mark for mark, _ in marks], at), len(marks) - 1)
    (low, start), (high, end) = marks[after - 1], marks[after]
    return round(start + (end - start) * (at - low) / (high - low))


_AZURE_IN = ((0.0, 16), (0.25, 396), (0.5, 1_020), (0.75, 1_189), (0.9, 2_734), (1.0, 3_400))
_AZURE_OUT = ((0.0, 8), (0.25, 85), (0.5, 129), (0.75, 395), (0.9, 424), (1.0, 601))


def _azure(draw: random.Random) -> tuple[int, int]:
    return _quantiles(draw, _AZURE_IN), _quantiles(draw, _AZURE_OUT)


SHAPES = {
    "translation": Shape("WMT23 en-de paragraphs: prompts log-normal, answers 1.25 times as long", 24, _paragraph),
    "labelling": Shape("MMLU-like: 57 instructions of 650 tokens, answers of 4 to 12", 650, _label, 57),
    "sharegpt": Shape("ShareGPT as vLLM's benchmarks filter it", 0, _sharegpt),
    "azure-conv": Shape("Azure LLM inference trace 2023, conversations, by its quantiles", 0, _azure),
}


def rows(shape: Shape, count: int, model: str, schemas: list[dict[str, Any]] | None = None) -> Iterator[bytes]:
    """Yield the lines of an input file. With `schemas`, answers follow them in turn."""
    draw = random.Random(SEED)
    words = [" ".join(draw.choices(WORDS, k=shape.shared)) for _ in range(shape.prefixes)]
    for number in range(count):
        own, answer = shape.lengths(draw)
        text = f"{draw.choice(words)}\n\n{' '.join(draw.choices(WORDS, k=own))}"
        body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": text}], "temperature": 0}
        body |= {"max_tokens": answer, "ignore_eos": True}
        if schemas:
            schema = schemas[number % len(schemas)]
            body |= {"response_format": {"type": "json_schema", "json_schema": {"name": "label", "schema": schema}}}
            body |= {"max_tokens": 64, "ignore_eos": False}
        line = {"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions", "body": body}
        yield json.dumps(line).encode() + b"\n"


SUBJECTS = ["rivers", "printers", "winter", "bread", "the moon", "trains", "glass", "bees", "paper", "salt"]
TASKS = ["Name three facts about", "Write two sentences about", "Explain to a child what is known about", "Rhyme on"]


def questions(count: int, model: str) -> Iterator[bytes]:
    """Yield the lines of an input file for real weights: different questions, answers of up to 64 tokens."""
    for number in range(count):
        text = f"{TASKS[number % len(TASKS)]} {SUBJECTS[number // len(TASKS) % len(SUBJECTS)]}, number {number}."
        body = {"model": model, "messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 64}
        line = {"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions", "body": body}
        yield json.dumps(line).encode() + b"\n"


def label_schemas(count: int, first: int = 0) -> list[dict[str, Any]]:
    """Return schemas that differ in their words, from number `first` on: one of eight labels, and a few characters why.

    The characters are what costs a compiler that does not know them yet, 0.1 s with 49,000 tokens, 0.6 with 262,144.
    Both sides know them: a worker has compiled text of up to 100 characters before it is ready.
    """
    words = list(dict.fromkeys(WORDS))[:8]
    return [_label_schema([f"{word}-{number}" for word in words]) for number in range(first, first + count)]


def _label_schema(labels: list[str]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"label": {"type": "string", "enum": labels}, "why": {"type": "string", "maxLength": 20}},
        "required": ["label", "why"],
        "additionalProperties": False,
    }


if __name__ == "__main__":
    sys.stdout.buffer.writelines(rows(SHAPES[sys.argv[1]], int(sys.argv[2]), "bench"))
