"""What only the llama.cpp engine does."""

import asyncio

import pytest

from jobs.errors import ConfigurationError
from jobs.protocol import CHAT
from jobs.settings import LlamaCpp, Worker
from workers import engines


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
