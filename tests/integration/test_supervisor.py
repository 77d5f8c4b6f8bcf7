"""The supervisor of `promptmill up`, with programs that end by themselves. That it restarts a real worker:
tests/acceptance/test_embedded.py."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from api.stack.program import Program
from api.stack.supervisor import Supervisor

# Notes its process id, is ready, and runs. Of its starts some end with 70, as a worker whose engine died: before it is
# ready, or after.
PROGRAM = """
import os, signal, sys
starts, unready, dying = sys.argv[1:]
with open(starts, "a") as file:
    file.write(f"{os.getpid()}\\n")
number = str(len(open(starts).readlines()))
if number in unready.split(","):
    sys.exit(70)
print("all_ready", file=sys.stderr, flush=True)
if number in dying.split(","):
    sys.exit(70)
signal.pause()
"""


class Watched:
    """One program under a supervisor, and what that said."""

    def __init__(self, home: Path) -> None:
        self.starts = home / "starts"
        self.said: list[str] = []
        self.supervisor = Supervisor(home / "logs", self.said.append)

    @contextlib.asynccontextmanager
    async def running(self, *, unready: str = "", dying: str = "") -> AsyncIterator[None]:
        argv = [sys.executable, "-c", PROGRAM, str(self.starts), unready, dying]
        await self.supervisor.open()
        try:
            await self.supervisor.start(Program("engine", argv, ready_event="all_ready"))
            self.supervisor.watch()
            yield
        finally:
            await self.supervisor.stop_all()

    def pids(self) -> list[int]:
        return [int(line) for line in self.starts.read_text().split()]

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        async with asyncio.timeout(60):
            while not condition():
                assert not self.supervisor.stopping.is_set(), what
                await asyncio.sleep(0.02)


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


def test_a_program_that_keeps_ending_is_started_again_after_growing_pauses(watched: Watched) -> None:
    async def run() -> None:
        async with watched.running(dying="1,2,3"):
            await watched.until(lambda: len(watched.pids()) == 4, "it was started four times")

    asyncio.run(run())
    endings = [line for line in watched.said if "ended" in line]
    assert endings == [f"engine ended with status 70; it is started again in {pause} s" for pause in ("0.5", "1", "2")]
    assert len(set(watched.pids())) == 4


def test_a_killed_program_is_started_again(watched: Watched) -> None:
    async def run() -> None:
        async with watched.running():
            os.kill(watched.pids()[0], signal.SIGKILL)
            await watched.until(lambda: "engine is ready again" in watched.said, "it is back")

    asyncio.run(run())
    assert watched.said[0] == f"engine ended with status {-signal.SIGKILL}; it is started again in 0.5 s"
    assert len(watched.pids()) == 2


def test_a_program_that_does_not_become_ready_again_is_not_given_up(watched: Watched) -> None:
    async def run() -> None:
        async with watched.running(dying="1", unready="2"):
            await watched.until(lambda: "engine is ready again" in watched.said, "it is back")

    asyncio.run(run())
    assert [line.split(";")[-1].split(". ")[0] for line in watched.said] == [
        " it is started again in 0.5 s",
        "engine ended with status 70",
        " it is started again in 1 s",
        "engine is ready again",
    ]


def test_what_is_stopped_stays_stopped(watched: Watched) -> None:
    async def run() -> None:
        async with watched.running():
            pass

    asyncio.run(run())
    assert watched.said == []
    (pid,) = watched.pids()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
