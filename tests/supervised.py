"""A worker under a supervisor: started again whenever it ends by itself."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import services


class Supervised(threading.Thread):
    """Keeps one worker running until `close`. `ends` are the exit statuses so far, negative for a signal."""

    def __init__(self, stack: services.Stack, **environment: str) -> None:
        super().__init__(name="supervisor", daemon=True)
        self.ends: list[int] = []
        self._stack, self._environment = stack, environment
        self._over = threading.Event()
        self._worker: services.Process | None = None

    def run(self) -> None:
        while not self._over.is_set():
            # One that ends before it is ready fails the start; its status says how.
            with contextlib.suppress(AssertionError):
                self._worker = self._stack.worker(**self._environment)
                while self._worker.popen.poll() is None and not self._over.wait(0.02):
                    pass
            if not self._over.is_set():
                self.ends.append(self._worker.popen.returncode if self._worker else 1)
                self._worker = None

    def close(self) -> None:
        self._over.set()
        self.join()
        if self._worker:
            self._worker.stop()


@contextlib.contextmanager
def supervised(stack: services.Stack, **environment: Any) -> Iterator[Supervised]:
    """Keep a worker running until the end of the block."""
    made = Supervised(stack, **environment)
    made.start()
    try:
        yield made
    finally:
        made.close()
