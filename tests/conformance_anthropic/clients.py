"""The two clients of the `anthropic` package, used in one and the same way."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from anthropic import Anthropic, AsyncAnthropic
from conformance.blocking import Mode, blocking

TIMEOUT_SECONDS = 120


@contextmanager
def connect(mode: Mode, base_url: str, api_key: str, *, max_retries: int = 0) -> Iterator[Anthropic]:
    """Yield a client: `Anthropic`, or an `AsyncAnthropic` that blocks like one."""
    options: dict[str, Any] = {
        "base_url": base_url,
        "api_key": api_key,
        "max_retries": max_retries,
        "timeout": TIMEOUT_SECONDS,
    }
    if mode == "sync":
        with Anthropic(**options) as client:
            yield client
    else:
        with blocking(AsyncAnthropic(**options)) as client:
            yield cast("Anthropic", client)
