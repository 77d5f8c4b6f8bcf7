"""The two clients of the `openai` package."""

from contextlib import AbstractContextManager

from conformance import blocking
from conformance.blocking import Mode
from openai import AsyncOpenAI, OpenAI


def connect(mode: Mode, base_url: str, api_key: str, *, max_retries: int = 0) -> AbstractContextManager[OpenAI]:
    """Return a client for a `with` block: `OpenAI`, or an `AsyncOpenAI` that blocks like one."""
    return blocking.connect(mode, OpenAI, AsyncOpenAI, base_url, api_key, max_retries)
