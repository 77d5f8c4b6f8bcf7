"""What only the llama.cpp engine does."""

import asyncio

import pytest

from jobs.errors import ConfigurationError
from jobs.settings import LlamaCpp, Worker
from workers import engines


def test_a_model_that_makes_no_embeddings_does_not_start() -> None:
    silent = LlamaCpp(context_tokens=512, parallel_requests=2, task="embed")

    async def start() -> None:
        await engines.make(Worker(engine="llamacpp", llamacpp=silent)).start()

    with pytest.raises(ConfigurationError, match="PROMPTMILL_WORKER__LLAMACPP__POOLING"):
        asyncio.run(start())
