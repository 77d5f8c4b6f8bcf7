"""No process of vLLM outlives the worker: it would keep the GPU (vllm#55510)."""

import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from subjects import below, is_core

from workers.engines import vllm_processes

# Starts the engine as a worker does, says so, and waits.
PROGRAM = """
from subjects import CHECKPOINTS, started
with started(model=str(CHECKPOINTS / "gemma3")):
    print("loaded", flush=True)
    input()
"""


@contextmanager
def starting(log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Run the program; whatever it started and left is ended, too."""
    paths = os.pathsep.join(sys.path)
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=out,
            env={**os.environ, "PYTHONPATH": paths},
            start_new_session=True,
        )
    try:
        with process:
            yield process
            process.kill()
    finally:
        process.kill()


def until(condition: Callable[[], Any], log: Path, seconds: float = 200) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.1)
    return found


def is_loaded(log: Path) -> bool:
    return "\nloaded\n" in f"\n{log.read_text()}"


def core_below(process: psutil.Process) -> psutil.Process | None:
    return next((each for each in below(process) if is_core(each)), None)


def ended(processes: list[psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=20)
    for each in alive:
        each.kill()
    return not [each for each in alive if each.status() != psutil.STATUS_ZOMBIE]


def test_all_end_with_a_worker_that_is_killed(tmp_path: Path) -> None:
    """F16."""
    log = tmp_path / "log"
    with starting(log) as process:
        until(lambda: is_loaded(log), log)
        family = below(psutil.Process(process.pid))
        assert any(is_core(each) for each in family)
        assert len(family) >= 3, "the core, the sandbox, and Python's own tracker of resources"
        process.kill()
        assert ended(family), log.read_text()[-3000:]


def test_all_end_with_a_worker_that_is_killed_while_it_loads(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with starting(log) as process:
        worker = psutil.Process(process.pid)
        # Before that the core waits for the worker to greet it, five minutes at most, and holds nothing yet.
        until(lambda: (core := core_below(worker)) and below(core), log)
        # Into the imports of the core's own process.
        time.sleep(3)
        family = below(worker)
        assert not is_loaded(log)
        process.kill()
        assert ended(family), log.read_text()[-3000:]


@pytest.mark.parametrize("worker", [None, str(os.getpid())])
def test_the_plugin_leaves_a_worker_and_a_server_of_vllm_alone(
    monkeypatch: pytest.MonkeyPatch, worker: str | None
) -> None:
    if worker:
        monkeypatch.setenv(vllm_processes.WORKER_VARIABLE, worker)
    else:
        monkeypatch.delenv(vllm_processes.WORKER_VARIABLE, raising=False)
    vllm_processes.plugin()
    assert death_signal() == 0


def death_signal() -> int:
    """PR_GET_PDEATHSIG."""
    found = ctypes.c_int(-1)
    ctypes.CDLL(None).prctl(2, ctypes.byref(found))
    return found.value


def test_a_process_whose_worker_is_gone_already_ends() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    program = "from workers.engines import vllm_processes; vllm_processes.plugin(); print('went on')"
    environment = {**os.environ, vllm_processes.WORKER_VARIABLE: str(gone.pid), "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=False)
    assert (ran.returncode, ran.stdout) == (1, b"")
