"""What requests will take: rows, tokens, and time with a profile. Nothing is asked over the network."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from jobs.errors import ConfigurationError, InvalidRequest
from jobs.quotas import BYTES_PER_TOKEN
from jobs.settings import Worker
from workers import estimate

Count = Callable[[str], int]
RULE = f"a token for each {BYTES_PER_TOKEN} bytes of text"
# What a chat template puts around a turn: Gemma 3 takes five tokens.
TOKENS_PER_TURN = 5
ANSWER_LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
_decode = msgspec.json.Decoder(dict[str, Any]).decode


@dataclass(frozen=True)
class Estimate:
    """Of requests. Tokens of answers are the most that requests allow; if a length was named, that many for each."""

    rows: int
    input_tokens: int
    answer_tokens: int
    rows_without_limit: int
    """Requests that allow any length, and count for nothing in `answer_tokens`; none if a length was named."""
    answer_tokens_named: bool
    """Whether answers are as long as was named, or at most as long as requests allow."""
    counted_by: str
    rows_at_once: int | None
    """How many average rows fit into the GPU of the profile; None without a profile, or where that is not known."""
    seconds: float | None
    """With the profile's rate, measured with paragraphs to translate: no upper bound. None where none was measured."""


def make(
    bodies: Iterable[dict[str, Any]],
    count: Count,
    counted_by: str,
    answer_tokens: int | None,
    worker: Worker | None,
) -> Estimate:
    """Return the estimate for the bodies of requests."""
    rows = prompts = answers = unlimited = 0
    for body in bodies:
        rows += 1
        prompts += _prompt_tokens(body, count)
        limit = answer_tokens or next((body[name] for name in ANSWER_LIMITS if body.get(name)), None)
        answers += (limit or 0) * (body.get("n") or 1)
        unlimited += limit is None
    at_once = _rows_at_once(worker, prompts, answers, rows) if worker else None
    rate = worker.tokens_per_second if worker else None
    seconds = answers / rate if rate and not unlimited else None
    return Estimate(rows, prompts, answers, unlimited, answer_tokens is not None, counted_by, at_once, seconds)


def bodies(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the body of each request of a file.

    Raises:
        InvalidRequest: a line is no request.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                body = _decode(line.removeprefix(b"\xef\xbb\xbf"))["body"]
            except (msgspec.MsgspecError, UnicodeDecodeError, KeyError):
                body = None
            if not isinstance(body, dict):
                message = f"{path}, line {number} is no request: `promptmill validate` says why."
                raise InvalidRequest(message)
            if wrong := next((name for name in (*ANSWER_LIMITS, "n") if not _is_count(body.get(name))), None):
                raise InvalidRequest(f"{path}, line {number}: {wrong} is no whole number.")
            yield body


def _is_count(value: object) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool))


def _prompt_tokens(body: dict[str, Any], count: Count) -> int:
    turns = body.get("messages") if isinstance(body.get("messages"), list) else None
    if turns is not None:
        return sum(TOKENS_PER_TURN + sum(map(count, _texts(turn))) for turn in turns)
    return sum(count(text) for name in ("prompt", "input", "instructions") for text in _texts(body.get(name)))


def _texts(value: Any) -> Iterator[str]:  # noqa: ANN401  any JSON
    """Yield the texts of a turn, a list of parts, or a text; images are not counted."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _texts(value.get("content", value.get("text")))
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)


def _rows_at_once(worker: Worker, prompts: int, answers: int, rows: int) -> int | None:
    if not rows:
        return None
    lengths = f"{max(1, prompts // rows)}/{answers // rows}"
    return estimate.report(worker, lengths=lengths).rows[0].on_average


def counter(named: Path | None, worker: Worker | None) -> tuple[Count, str]:
    """Return what counts the tokens of a text, and its name: the tokenizer that is at hand, else a rule.

    Args:
        named: a `tokenizer.json`, or the folder that it is in.
        worker: of a profile, whose model may lie on this disk or in the Hugging Face cache.

    Raises:
        ConfigurationError: the one that is named cannot be read.
    """
    path = named if named is not None else (_of_model(worker.vllm.model) if worker else None)
    if path is None:
        return by_rule, RULE
    path = path / "tokenizer.json" if path.is_dir() else path
    try:
        return _by_tokenizer(path), str(path)
    except Exception as error:  # the library raises nothing narrower
        message = f"{path} is no tokenizer: {error}"
        raise ConfigurationError(message) from error


def by_rule(text: str) -> int:
    """Count a token for each four bytes, as the quota of tokens does."""
    return -(-len(text.encode()) // BYTES_PER_TOKEN)


def _by_tokenizer(path: Path) -> Count:
    from tokenizers import Tokenizer  # noqa: PLC0415  not needed by the rule

    tokenizer = Tokenizer.from_file(str(path))
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


def _of_model(model: str) -> Path | None:
    cache = Path.home() / ".cache" / "huggingface" / "hub" / f"models--{model.replace('/', '--')}" / "snapshots"
    places = (Path(model) / "tokenizer.json", *sorted(cache.glob("*/tokenizer.json")))
    return next((place for place in places if place.is_file()), None)
