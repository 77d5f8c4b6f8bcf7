"""What every engine does."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from jobs.protocol import CHAT, COMPLETIONS, EMBEDDINGS

Body = dict[str, Any]

# Where a request for each endpoint has its prompt.
PROMPT_OF = {CHAT: "messages", COMPLETIONS: "prompt", EMBEDDINGS: "input"}
# What an engine that works answers in a moment.
PROBES: dict[str, Body] = {
    CHAT: {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1},
    COMPLETIONS: {"prompt": "Hello", "max_tokens": 1},
    EMBEDDINGS: {"input": "Hello"},
}


@dataclass(frozen=True)
class Load:
    """What an engine is busy with at a moment."""

    running: int = 0
    """Requests that it computes."""
    waiting: int = 0
    """Requests that it has, and that wait for a place."""
    kv_use: float | None = None
    """Part of its KV cache in use, 0 to 1; None: it does not say."""
    preempted: int = 0
    """Requests that lost their place in the KV cache and were begun again, in all since it started."""


class Engine(Protocol):
    """Runs requests of the OpenAI API. One a process; used from one event loop."""

    name: str
    """Shown in the workers table."""

    async def start(self) -> None:
        """Load the model. Afterwards `run` may be called.

        Raises:
            ConfigurationError: the model or the device is not to be had.
        """

    def models(self) -> Sequence[str]:
        """Return the names that requests may give as `model`."""

    def endpoints(self) -> Sequence[str]:
        """Return the endpoints that `run` takes. `workers.endpoints` adds those that can be put in terms of these."""

    def capacity(self) -> int:
        """Return how many requests the engine runs together; more than these wait in it."""

    def takes_images(self) -> bool:
        """Tell whether messages may carry images. `run` gets each one as a checked `data:` URL, PNG or JPEG."""

    async def run(self, endpoint: str, body: Body, *, tenant: str = "") -> Body:
        """Return the response body of one request, as the endpoint's synchronous API would.

        Cancelling the call ends the request in the engine.

        Args:
            endpoint: one of `endpoints()`.
            body: what the client sent, or what `workers.endpoints` made of it; not yet checked.
            tenant: the project that asks; what an engine keeps of one project serves no other.

        Raises:
            RequestRejected: this request cannot be run; others can.
            EngineFatal: the engine is dead; every running request is lost.
        """

    def healthy(self) -> bool:
        """Tell whether the engine makes progress: it is idle, or some token came out lately. Never a mere ping."""

    def load(self) -> Load:
        """Return what it is busy with. Cheap, and may be called from any thread."""

    async def stop(self) -> None:
        """End every running request and free the device."""


class ProgressWatch:
    """Tells a working engine from one that hangs: requests run, yet nothing comes out for `stall_seconds`.

    Engines' own health checks answer 200 while the engine hangs (vllm#39863, #40926).
    """

    def __init__(self, stall_seconds: float) -> None:
        self._stall_seconds = stall_seconds
        self._running = 0
        self._last = time.monotonic()

    def __enter__(self) -> None:
        if not self._running:
            self.advance()
        self._running += 1

    def __exit__(self, *_: object) -> None:
        self._running -= 1

    def advance(self) -> None:
        """Note that the engine did something. May be called from any thread."""
        self._last = time.monotonic()

    @property
    def busy(self) -> bool:
        """Whether requests run."""
        return self._running > 0

    def load(self, capacity: int) -> Load:
        """Return the load of an engine that computes `capacity` requests at once and says no more about itself."""
        running = min(self._running, capacity)
        return Load(running, self._running - running)

    def healthy(self) -> bool:
        return not self._running or time.monotonic() - self._last < self._stall_seconds
