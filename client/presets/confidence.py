"""How sure a model was of a label, from the probabilities of its tokens. Pure.

The product, over the tokens that spell the label, of the share that goes on with it among the alternatives that go on
with any label: what the schema forbids takes nothing away. A label of which nothing is listed is reckoned as likely as
the least that is, so that the figure is a lower bound. It is the model's own view, not how often it is right.
"""

import math
from collections.abc import Sequence
from typing import Any

Token = dict[str, Any]


def of(label: str, labels: Sequence[str], tokens: Sequence[Token]) -> float | None:
    """Return the confidence in `label`, 0 to 1; None if the tokens do not show it.

    Args:
        label: what was answered, the one string of a JSON object.
        labels: all that could have been.
        tokens: `logprobs.content` of the answer, with `top_logprobs`.
    """
    spelt = [_bytes(token) for token in tokens]
    whole = b"".join(spelt)
    start = whole.rfind(_json(label))
    if start < 0:
        return None
    candidates = [whole[:start] + _json(each) for each in labels]
    end, place, product = start + len(_json(label)), 0, 1.0
    for token, text in zip(tokens, spelt, strict=True):
        if start < place + len(text) and place < end:
            product *= _share(token, whole[:place], whole[:end], candidates)
        place += len(text)
    return round(product, 4)


def _json(label: str) -> bytes:
    """Return a label as models spell it in JSON, in its quotes."""
    text = label.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'.encode()


def _bytes(token: Token) -> bytes:
    # A token may be a part of a character.
    return bytes(token["bytes"]) if token.get("bytes") else str(token["token"]).encode()


def _share(token: Token, before: bytes, chosen: bytes, candidates: Sequence[bytes]) -> float:
    """Return how much of what goes on with some label goes on with the chosen one, at one place."""
    chances = {_bytes(each): math.exp(each["logprob"]) for each in token.get("top_logprobs") or ()}
    least = min(chances.values(), default=0.0)
    chances[_bytes(token)] = math.exp(token["logprob"])
    own = sum(chance for text, chance in chances.items() if _goes_on(before + text, chosen))
    others = 0.0
    for text, chance in chances.items():
        if not _goes_on(before + text, chosen) and any(_goes_on(before + text, each) for each in candidates):
            others += chance
    unseen = sum(
        each.startswith(before) and not any(_goes_on(before + text, each) for text in chances) for each in candidates
    )
    return own / (own + others + unseen * least) if own else 0.0


def _goes_on(text: bytes, candidate: bytes) -> bool:
    return candidate.startswith(text) or text.startswith(candidate)
