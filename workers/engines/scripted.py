"""An engine that does what its prompt says: for fault tests and for measuring the data plane. Never a default.

The first word of the last message (or of the prompt, or of the first input) decides:

    SLEEP <seconds> ...     answers after a while, one of its capacity meanwhile; SLOW is the same
    AWAIT <path> ...        answers when there is a file of that name
    REJECT ...              is refused with 400
    ERROR ...               raises an error that no engine should
    HANG                    never answers, and makes no progress
    CRASH                   kills the process with SIGKILL
    CRASH_ONCE <path> ...   does so if there is no file of that name, and leaves one
    FATAL                   the engine dies, the process lives
    OOM                     finds no memory (MemoryError)
    REORDER ...             is answered after those that came later, more or less
    GARBAGE <shape> ...     is answered with what is no answer: `none`, `text`, `truncated`, `empty`, `object`,
                            `surrogate`, `usage`, `amount`, `debt`, or without a shape something without choices
    TAKE <bytes> ...        is answered if there is so much memory
    anything else           is answered with itself, up to a stop string

`worker.scripted_fault` is for what no prompt can ask for: an engine that does not start (`start`), say. All answers
have the same `id`.

An image in it reads as `[image 64x48 png]`, by what its first bytes say. Embeddings are made of the input's hash.
"""

import asyncio
import base64
import hashlib
import io
import json
import math
import os
import random
import signal
import struct
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, cast

from PIL import Image

from jobs.errors import ConfigurationError, EngineFatal, RequestRejected
from jobs.protocol import CHAT, COMPLETIONS, EMBEDDINGS
from workers.engines.base import Body, Load, ProgressWatch

# Time between two looks for a file.
LOOK_SECONDS = 0.2


class ScriptedEngine:
    """Obeys."""

    name = "scripted"

    def __init__(
        self, models: Sequence[str], *, capacity: int = 256, stall_seconds: float, fault: str = "none"
    ) -> None:
        self._models, self._capacity, self._fault = models, capacity, fault
        self._places = asyncio.Semaphore(capacity)
        self._progress = ProgressWatch(stall_seconds)

    async def start(self) -> None:
        if self._fault == "start":
            message = "The scripted engine was asked not to start."
            raise ConfigurationError(message)

    def models(self) -> Sequence[str]:
        return self._models

    def endpoints(self) -> Sequence[str]:
        return [CHAT, COMPLETIONS, EMBEDDINGS]

    def capacity(self) -> int:
        return self._capacity

    def takes_images(self) -> bool:
        return True

    async def run(self, endpoint: str, body: Body, *, tenant: str = "") -> Body:  # noqa: ARG002
        text = _prompt(endpoint, body)
        if self._fault == "requests":
            raise EngineFatal
        with self._progress:
            if action := _ACTIONS.get(text.split(" ", 1)[0]):
                async with self._places:
                    await action(text)
            self._progress.advance()
        if text.startswith("GARBAGE"):
            return cast("Body", _garbage(text, body))
        return _embeddings(body) if endpoint == EMBEDDINGS else _response(endpoint, body, text)

    def healthy(self) -> bool:
        died_idle = self._fault == "idle" and not self._progress.busy
        return not died_idle and self._progress.healthy()

    def load(self) -> Load:
        return self._progress.load(self._capacity)

    async def stop(self) -> None:
        pass


def _prompt(endpoint: str, body: Body) -> str:
    if endpoint == EMBEDDINGS:
        first = _inputs(body)[0]
        return first if isinstance(first, str) else ""
    prompt = body["messages"][-1]["content"] if endpoint == CHAT else body["prompt"]
    if isinstance(prompt, list) and all(part["type"] in ("text", "image_url") for part in prompt):
        return "".join(part["text"] if part["type"] == "text" else _seen(part["image_url"]["url"]) for part in prompt)
    if not isinstance(prompt, str):
        message = "Only text and images are scripted."
        raise RequestRejected(message, param=f"messages.{len(body['messages']) - 1}.content")
    return prompt


def _seen(url: str) -> str:
    """Say what came through of an image."""
    with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as image:
        return f"[image {image.width}x{image.height} {str(image.format).lower()}]"


def _response(endpoint: str, body: Body, text: str) -> Body:
    words = text.count(" ") + 1
    stops = body.get("stop") or ()
    met = next((stop for stop in ([stops] if isinstance(stops, str) else stops) if stop in text), None)
    text = text.partition(met)[0] if met else text
    choice: Body = {"index": 0, "finish_reason": "stop", "stop_reason": met, "logprobs": None}
    if endpoint == CHAT:
        choice["message"] = {"role": "assistant", "content": text}
    else:
        choice["text"] = text
    return {
        "id": "scripted",
        "object": "chat.completion" if "message" in choice else "text_completion",
        "created": int(time.time()),
        "model": body["model"],
        "choices": [choice],
        "usage": {"prompt_tokens": words, "completion_tokens": words, "total_tokens": 2 * words},
    }


def _garbage(text: str, body: Body) -> object:
    whole = _response(CHAT, {**body, "stop": ()}, text)
    shapes = {
        "none": None,
        "text": json.dumps(whole),
        "truncated": json.dumps(whole)[:40],
        "empty": {**whole, "choices": []},
        "object": {**whole, "choices": [object()]},
        "usage": {**whole, "usage": {"prompt_tokens": "many"}},
        "amount": {**whole, "usage": {"prompt_tokens": 10**30}},
        "debt": {**whole, "usage": {"completion_tokens": -1}},
        "surrogate": {**whole, "choices": ["\ud800"]},
    }
    return shapes.get(text.partition(" ")[2].partition(" ")[0], {"garbage": text})


def _inputs(body: Body) -> list[Any]:
    given = body["input"]
    return given if isinstance(given, list) and not isinstance(given[0], int) else [given]


def _embeddings(body: Body) -> Body:
    vectors = [_vector(given) for given in _inputs(body)]
    words = sum(len(given.split()) if isinstance(given, str) else len(given) for given in _inputs(body))
    as_text = body.get("encoding_format") == "base64"
    return {
        "object": "list",
        "model": body["model"],
        "data": [
            {"object": "embedding", "index": index, "embedding": _packed(vector) if as_text else vector}
            for index, vector in enumerate(vectors)
        ],
        "usage": {"prompt_tokens": words, "total_tokens": words},
    }


def _vector(given: str | list[int]) -> list[float]:
    """Return eight numbers of length one."""
    numbers = struct.unpack("<8i", hashlib.sha256(str(given).encode()).digest())
    return [number / math.hypot(*numbers) for number in numbers]


def _packed(vector: list[float]) -> str:
    """Return the base64 of little-endian float32, as the OpenAI API has it."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


async def _sleep(text: str) -> None:
    await asyncio.sleep(float(text.split()[1]))


async def _await(text: str) -> None:
    gate = Path(text.split()[1])
    while not gate.exists():
        await asyncio.sleep(LOOK_SECONDS)


async def _reject(_: str) -> None:
    message = "The prompt asked to be refused."
    raise RequestRejected(message, code="rejected", param="messages")


async def _error(_: str) -> None:
    message = "The prompt asked for an error."
    raise RuntimeError(message)


async def _hang(_: str) -> None:
    await asyncio.Event().wait()


async def _crash(_: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


async def _crash_once(text: str) -> None:
    mark = Path(text.split()[1])
    if not mark.exists():
        mark.touch()
        await _crash(text)


async def _reorder(_: str) -> None:
    await asyncio.sleep(random.uniform(0, 0.2))  # noqa: S311  no secret


async def _take(text: str) -> None:
    bytearray(int(text.split()[1]))


async def _oom(_: str) -> None:
    raise MemoryError


async def _fatal(_: str) -> None:
    raise EngineFatal


_ACTIONS: dict[str, Callable[[str], Coroutine[Any, Any, None]]] = {
    "SLEEP": _sleep,
    "SLOW": _sleep,
    "AWAIT": _await,
    "REJECT": _reject,
    "ERROR": _error,
    "HANG": _hang,
    "CRASH": _crash,
    "CRASH_ONCE": _crash_once,
    "REORDER": _reorder,
    "FATAL": _fatal,
    "OOM": _oom,
    "TAKE": _take,
}
