"""Runs programs one after the other, each when the one before is ready, and stops them in reverse.

circus spawns them (in a session of their own, so that Ctrl-C reaches only us), keeps their logs and stops them, with
SIGKILL for those that do not listen. Its own sequencing is not used: it starts the next program although the one
before failed, drops signals while it starts, and stops all at once (docs/decisions/0004).
"""

import asyncio
import contextlib
import logging
import os
import shlex
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from circus.arbiter import Arbiter
from circus.exc import ConflictError
from tornado.ioloop import IOLoop

from api.stack.program import Program
from jobs.errors import StartFailed

READY_POLL_SECONDS = 0.05
LOCK_POLL_SECONDS = 0.02
LOG_BYTES, LOG_FILES = 10_000_000, 2
# A program that ends by itself is started again after 0.5, 1, 2 ... 30 seconds; after a minute of good behaviour the
# count starts anew. It is never given up on: a worker that keeps dying must not take the API and its results away.
BACKOFF_SECONDS, MAX_BACKOFF_SECONDS, GOOD_SECONDS = 0.5, 30.0, 60.0


@dataclass
class _Child:
    program: Program
    watcher: Any
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    status: int | None = None
    log_start: int = 0
    """Size of its log when it was started last, bytes."""


class Supervisor:
    """Programs are started with `start`; `stop_all` ends them. Use within one event loop, in the main thread."""

    def __init__(self, log_dir: Path, report: Callable[[str], None]) -> None:
        self.stopping = asyncio.Event()
        self._log_dir, self._report = log_dir, report
        self._children: dict[str, _Child] = {}
        self._watching: list[asyncio.Task[None]] = []
        # circus does one thing at a time; two of ours at once would be refused.
        self._spawning = asyncio.Lock()
        logging.getLogger("circus").setLevel(logging.ERROR)

    async def open(self) -> None:
        """Take over the signals of this process: from now on SIGINT, SIGTERM and SIGHUP set `stopping`."""
        self._log_dir.mkdir(parents=True, exist_ok=True)
        # Names of its own: those of a supervisor that was here before are free a moment after it stopped.
        control, events = (f"inproc://{name}-{time.monotonic_ns()}" for name in ("control", "events"))
        self._arbiter = Arbiter([], control, events, check_delay=-1, loop=IOLoop.current(), multicast_endpoint=None)
        self._arbiter.ctrl.sys_hdl.stop()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self.stopping.set)
        loop.add_signal_handler(signal.SIGCHLD, self._reap)
        await self._arbiter.start()

    async def start(self, program: Program) -> None:
        """Start a program and return when it is ready.

        Raises:
            StartFailed: it ended, or was not ready in time. The message says where its log is.
        """
        async with self._spawning:
            child = self._children.get(program.name) or self._add(program)
            child.ended.clear()
            child.status = None
            child.log_start = self._log_size(child)
            await _unlocked(child.watcher.start)
        async with self._deadline(child):
            await (self._finished(child) if program.runs_to_its_end else self._ready(child))

    def watch(self) -> None:
        """From now on, start programs again that end by themselves."""
        for child in self._children.values():
            if not child.program.runs_to_its_end:
                self._watching.append(asyncio.create_task(self._keep(child)))

    async def stop_all(self) -> None:
        """Stop every program, the last one first."""
        self.stopping.set()
        for task in self._watching:
            task.cancel()
        for child in reversed(self._children.values()):
            await _unlocked(child.watcher.stop)
        await self._arbiter.stop()
        await asyncio.sleep(0)

    def _add(self, program: Program) -> _Child:
        executable, *arguments = program.command(os.getpid())
        watcher = self._arbiter.add_watcher(
            program.name,
            # circus splits it as a shell would.
            shlex.quote(executable),
            args=arguments,
            env=dict(program.environment),
            working_dir="/" if program.uid >= 0 else str(Path.cwd()),
            autostart=False,
            respawn=False,
            singleton=True,
            max_retry=1,
            stop_signal=program.stop_signal,
            graceful_timeout=program.grace_seconds,
            stdout_stream=self._stream(f"{program.name}.out.log"),
            stderr_stream=self._stream(f"{program.name}.log"),
            hooks={"after_reap": (self._reaped, True)},
        )
        child = self._children[program.name] = _Child(program, watcher)
        return child

    def _stream(self, name: str) -> dict[str, object]:
        path = self._log_dir / name
        path.touch(mode=0o600)
        return {"class": "FileStream", "filename": str(path), "max_bytes": LOG_BYTES, "backup_count": LOG_FILES}

    def _reap(self) -> None:
        # circus refuses while it starts or stops something; a child that ended just then is collected a moment later.
        try:
            self._arbiter.manage_watchers()
        except ConflictError:
            asyncio.get_running_loop().call_later(LOCK_POLL_SECONDS, self._reap)

    def _reaped(self, watcher: Any, **details: Any) -> bool:  # noqa: ANN401  circus has no types
        child = self._children[watcher.name]
        child.status = details.get("exit_code")
        child.ended.set()
        return True

    @contextlib.asynccontextmanager
    async def _deadline(self, child: _Child) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(child.program.start_seconds):
                yield
        except TimeoutError:
            raise self._failed(child, f"was not ready after {child.program.start_seconds:g} seconds") from None

    async def _ready(self, child: _Child) -> None:
        while not await self._is_ready(child):
            if child.ended.is_set():
                raise self._failed(child, f"ended with status {child.status}")
            await asyncio.sleep(READY_POLL_SECONDS)

    async def _is_ready(self, child: _Child) -> bool:
        program = child.program
        if program.ready and not await program.ready():
            return False
        return not program.ready_event or self._has_logged(child, program.ready_event)

    def _has_logged(self, child: _Child, event: str) -> bool:
        with self._log(child).open("rb") as file:
            # Shorter than before: the log was rotated.
            file.seek(child.log_start if self._log_size(child) >= child.log_start else 0)
            return event.encode() in file.read()

    def _log(self, child: _Child) -> Path:
        return self._log_dir / f"{child.program.name}.log"

    def _log_size(self, child: _Child) -> int:
        return self._log(child).stat().st_size

    async def _finished(self, child: _Child) -> None:
        await child.ended.wait()
        if child.status:
            raise self._failed(child, f"ended with status {child.status}")

    def _failed(self, child: _Child, what: str) -> StartFailed:
        log = self._log(child)
        return StartFailed(f"{child.program.name} {what}. Its log is {log}{_last_line(log)}")

    async def _keep(self, child: _Child) -> None:
        pause = None
        while True:
            started = time.monotonic()
            await child.ended.wait()
            pause = pause_after(pause, time.monotonic() - started)
            self._report(f"{child.program.name} ended with status {child.status}; it is started again in {pause:g} s")
            await asyncio.sleep(pause)
            await self._restart(child)

    async def _restart(self, child: _Child) -> None:
        await _unlocked(child.watcher.stop)
        try:
            await self.start(child.program)
            self._report(f"{child.program.name} is ready again")
        except StartFailed as error:
            self._report(error.message)
            child.ended.set()


def pause_after(pause: float | None, ran_seconds: float) -> float:
    """Return how long to wait before a program is started again, seconds.

    Args:
        pause: how long it was the time before; None if there was none.
        ran_seconds: how long the program ran after it was ready.
    """
    if pause is None or ran_seconds > GOOD_SECONDS:
        return BACKOFF_SECONDS
    return min(2 * pause, MAX_BACKOFF_SECONDS)


async def _unlocked(action: Callable[[], Awaitable[object]]) -> None:
    """Wait until circus has done `action`: it refuses one while it is at another."""
    while True:
        try:
            await action()
        except ConflictError:
            await asyncio.sleep(LOCK_POLL_SECONDS)
        else:
            return


def _last_line(path: Path) -> str:
    with contextlib.suppress(OSError, IndexError):
        return ": " + path.read_text(errors="replace").splitlines()[-1][:500]
    return ""
