"""An engine that does what its prompt says: for fault tests and for measuring the data plane. Never a default.

The first word of the last message (or of the prompt) decides:

    SLEEP <seconds> ...     answers after a while
    REJECT ...              is refused with 400
    ERROR ...               raises an error that no engine should
    HANG                    never answers, and makes no progress
    CRASH                   kills the process with SIGKILL
    FATAL                   the engine dies, the process lives
    anything else           is answered with itself
"""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from jobs.errors import EngineFatal, RequestRejected
from jobs.protocol import CHAT, COMPLETIONS, MESSAGES
from workers.engines.base import Body, ProgressWatch

MODEL = "scripted"
CAPACITY = 256


class ScriptedEngine:
    """Obeys."""

    name = "scripted"

    def __init__(self, *, stall_seconds: float) -> None:
        self._progress = ProgressWatch(stall_seconds)

    async def start(self) -> None:
        pass

    def models(self) -> Sequence[str]:
        return [MODEL]

    def capacity(self) -> int:
        return CAPACITY

    async def run(self, endpoint: str, body: Body) -> Body:
        text = _prompt(endpoint, body)
        with self._progress:
            if action := _ACTIONS.get(text.split(" ", 1)[0]):
                await action(text)
            self._progress.advance()
        return _response(endpoint, body, text)

    def healthy(self) -> bool:
        return self._progress.healthy()

    async def stop(self) -> None:
        pass


def _prompt(endpoint: str, body: Body) -> str:
    prompt = body["prompt"] if endpoint == COMPLETIONS else body["messages"][-1]["content"]
    if not isinstance(prompt, str):
        message = "Only text is scripted."
        raise RequestRejected(message, param="messages")
    return prompt


def _response(endpoint: str, body: Body, text: str) -> Body:
    words = len(text.split())
    if endpoint == MESSAGES:
        return {
            "id": "msg_scripted",
            "type": "message",
            "role": "assistant",
            "model": body["model"],
            "content": [{"type": "text", "text": text}],
            "stop_reason": "end_turn",
            "stop_sequence": None,
            "usage": {"input_tokens": words, "output_tokens": words},
        }
    choice: Body = {"index": 0, "finish_reason": "stop", "logprobs": None}
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


async def _sleep(text: str) -> None:
    await asyncio.sleep(float(text.split()[1]))


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


async def _fatal(_: str) -> None:
    raise EngineFatal


_ACTIONS: dict[str, Callable[[str], Coroutine[Any, Any, None]]] = {
    "SLEEP": _sleep,
    "REJECT": _reject,
    "ERROR": _error,
    "HANG": _hang,
    "CRASH": _crash,
    "FATAL": _fatal,
}
