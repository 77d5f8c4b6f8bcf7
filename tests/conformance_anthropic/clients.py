"""The two clients of the `anthropic` package."""

from contextlib import AbstractContextManager

from anthropic import Anthropic, AsyncAnthropic
from conformance import blocking
from conformance.blocking import Mode


def connect(mode: Mode, base_url: str, api_key: str, *, max_retries: int = 0) -> AbstractContextManager[Anthropic]:
    """Return a client for a `with` block: `Anthropic`, or an `AsyncAnthropic` that blocks like one."""
    return blocking.connect(mode, Anthropic, AsyncAnthropic, base_url, api_key, max_retries)
