"""Values that are made once, however many ask for them at the same time, and kept as long as there is room."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    """Anything that knows how much room it takes."""

    @property
    def size(self) -> int:
        """Bytes; 0: it is not kept."""


Value = TypeVar("Value", bound=Sized)


class Shared(Generic[Value]):
    """The values that were asked for last, up to `max_bytes` of them. Used from one event loop."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._bytes = max_bytes, 0
        self._kept: OrderedDict[Hashable, Value] = OrderedDict()
        self._under_way: dict[Hashable, asyncio.Task[Value]] = {}

    async def get(self, key: Hashable, make: Callable[[], Awaitable[Value]]) -> Value:
        """Return the value of `key`, which `make` makes if it is not there.

        Whoever asks meanwhile waits for the same one, and whoever goes away takes it from nobody. What `make` raises
        is raised for all of them, and not kept.
        """
        if (kept := self._kept.get(key)) is not None:
            self._kept.move_to_end(key)
            return kept
        if key not in self._under_way:
            self._under_way[key] = asyncio.create_task(self._make(key, make))
        return await asyncio.shield(self._under_way[key])

    async def _make(self, key: Hashable, make: Callable[[], Awaitable[Value]]) -> Value:
        try:
            value = await make()
        finally:
            del self._under_way[key]
        self._keep(key, value)
        return value

    def _keep(self, key: Hashable, value: Value) -> None:
        if not 0 < value.size <= self._max_bytes:
            return
        self._kept[key] = value
        self._bytes += value.size
        while self._bytes > self._max_bytes:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= oldest.size

    async def close(self) -> None:
        """End what is under way."""
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
