"""What only the llama.cpp engine does."""

import asyncio
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from jobs.errors import ConfigurationError
from jobs.protocol import CHAT
from jobs.settings import LlamaCpp, Worker
from workers import engines
from workers.engines.llamacpp import QUEUED_IN_ENGINE, LlamaCppEngine


def test_a_model_that_makes_no_embeddings_does_not_start() -> None:
    silent = LlamaCpp(context_tokens=512, parallel_requests=2, task="embed")

    async def start() -> None:
        await engines.make(Worker(engine="llamacpp", llamacpp=silent)).start()

    with pytest.raises(ConfigurationError, match="PROMPTMILL_WORKER__LLAMACPP__POOLING"):
        asyncio.run(start())


def test_f117_what_was_read_for_one_project_serves_no_other() -> None:
    """With one project only, what two prompts have in common is read once."""
    body = {
        "model": LlamaCpp().model_name,
        "messages": [{"role": "user", "content": "Rivers and lakes and seas. " * 20}],
        "max_tokens": 1,
    }

    async def reused(tenants: list[str]) -> list[int]:
        engine = engines.make(Worker(engine="llamacpp", llamacpp=LlamaCpp(parallel_requests=1)))
        await engine.start()
        try:
            answers = [await engine.run(CHAT, body, tenant=tenant) for tenant in tenants]
        finally:
            await engine.stop()
        return [answer["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in answers]

    first, again, others, once_more = asyncio.run(reused(["one", "one", "two", "one"]))
    assert (first, others, once_more) == (0, 0, 0)
    assert again > 100


def test_f117_a_request_that_waited_while_another_project_came_reuses_nothing() -> None:
    """It is asked when it has its turn, not when it begins to wait."""
    body = {"model": LlamaCpp().model_name, "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
    turns = 1 + QUEUED_IN_ENGINE
    answer = {"choices": [{"index": 0}], "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}}

    async def reuse() -> list[bool]:
        engine: Any = LlamaCppEngine(LlamaCpp(parallel_requests=1), stall_seconds=60)
        sent: list[bool] = []
        may_answer = asyncio.Event()

        async def post(_: str, *, content: bytes, **__: Any) -> Any:
            sent.append(msgspec.json.decode(content)["cache_prompt"])
            await may_answer.wait()
            return SimpleNamespace(json=lambda: answer)

        engine._client = SimpleNamespace(post=post)
        asking = [asyncio.create_task(engine.run(CHAT, body, tenant="one")) for _ in range(turns + 1)]
        while len(sent) < turns:
            await asyncio.sleep(0)
        asking.append(asyncio.create_task(engine.run(CHAT, body, tenant="two")))
        await asyncio.sleep(0)
        may_answer.set()
        await asyncio.gather(*asking)
        return sent

    assert asyncio.run(reuse()) == [True] * turns + [False, False]
