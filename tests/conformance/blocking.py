"""The two clients of an SDK, used in one and the same way, so that each case is written once."""

import asyncio
import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

Mode = Literal["sync", "async"]
TIMEOUT_SECONDS = 120


@contextmanager
def connect(
    mode: Mode,
    sync: Callable[..., Any],
    asynchronous: Callable[..., Any],
    base_url: str,
    api_key: str,
    max_retries: int,
) -> Iterator[Any]:
    """Yield a client: a synchronous one, or an asynchronous one that blocks like one. It is closed afterwards."""
    options = {"base_url": base_url, "api_key": api_key, "max_retries": max_retries, "timeout": TIMEOUT_SECONDS}
    with sync(**options) if mode == "sync" else blocking(asynchronous(**options)) as client:
        yield client


@contextmanager
def blocking(client: Any) -> Iterator["Blocking"]:
    """Yield an `AsyncOpenAI` or `AsyncAnthropic` as one whose calls block; it is closed afterwards."""
    with _loop() as loop:
        yield Blocking(client, loop)
        asyncio.run_coroutine_threadsafe(client.close(), loop).result()


@contextmanager
def _loop() -> Iterator[asyncio.AbstractEventLoop]:
    """Run an event loop in a thread of its own, so that several threads may wait for it at once."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


class Blocking:
    """An object of an asynchronous SDK whose methods wait for their answers and whose pages are iterated plainly."""

    def __init__(self, target: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._target, self._loop = target, loop

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        if inspect.ismethod(value):
            return lambda *args, **kwargs: self._settle(value(*args, **kwargs))
        # The resources, `client.files.content` say, are reached through one another.
        return Blocking(value, self._loop) if ".resources." in type(value).__module__ else value

    def __iter__(self) -> Iterator[Any]:
        items = self._target.__aiter__()
        while True:
            try:
                item = self._wait(anext(items))
            except StopAsyncIteration:
                return
            yield item

    def _settle(self, answer: Any) -> Any:
        if hasattr(answer, "__await__"):
            answer = self._wait(answer)
        is_client = hasattr(answer, "with_options")
        return Blocking(answer, self._loop) if is_client or hasattr(answer, "__aiter__") else answer

    def _wait(self, awaitable: Any) -> Any:
        async def wait() -> Any:
            return await awaitable

        return asyncio.run_coroutine_threadsafe(wait(), self._loop).result()
