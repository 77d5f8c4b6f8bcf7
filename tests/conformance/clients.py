"""The two clients of the `openai` package, used in one and the same way."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from conformance.blocking import Mode, blocking
from openai import AsyncOpenAI, OpenAI

TIMEOUT_SECONDS = 120


@contextmanager
def connect(mode: Mode, base_url: str, api_key: str, *, max_retries: int = 0) -> Iterator[OpenAI]:
    """Yield a client: `OpenAI`, or an `AsyncOpenAI` that blocks like one."""
    options: dict[str, Any] = {
        "base_url": base_url,
        "api_key": api_key,
        "max_retries": max_retries,
        "timeout": TIMEOUT_SECONDS,
    }
    if mode == "sync":
        with OpenAI(**options) as client:
            yield client
    else:
        with blocking(AsyncOpenAI(**options)) as client:
            yield cast("OpenAI", client)
