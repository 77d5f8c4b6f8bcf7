"""The process that compiles grammars, for `sandbox.py`: one that waits, with the tokenizer loaded, and a fork for each.

    python -P sandbox_child.py MODEL_DIR VOCABULARY CPU_SECONDS WALL_SECONDS MEMORY_BYTES PARENT_PID

On stdin and stdout: frames of four bytes of length (big-endian) and JSON. It says `{"ready": true}` once; after that
each `{"id", "kind", "text"}` is answered with `{"id", "verdict", "reason"}`, in any order. Verdicts: `ok`, `refused`
(the reason is the compiler's), `limit` (it took too much of what the reason names), `failed` (no verdict on the text).
It ends when stdin does, and when its parent dies. It imports nothing of this project, so that nothing of it is at hand.

A fork begins with the parts of schemas that the waiting process has compiled, and those are our own: what clients send
is compiled in forks only, and whether it passes does not depend on what came before.
"""

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
# How far a fork stands back where the engine's own processes want the processor: a quarter of a core beside one.
NICE = 5
MAX_REASON_CHARS = 1_000

# What the forks need not compile again. Text of bounded length is what takes compilers longest, 20 to 30 ms for each
# character with the 262,144 tokens of Gemma, and shorter text is part of longer text.
PARTS = {
    "type": "object",
    "properties": {
        "text": {"type": "string", "maxLength": 100},
        "texts": {"type": "array", "items": {"type": "string"}},
        "number": {"type": "number"},
        "integer": {"type": "integer"},
        "yes": {"type": ["boolean", "null"]},
    },
}

Compile = Callable[[str, str], None]


@dataclass(frozen=True)
class Limits:
    """What one fork may use."""

    cpu_seconds: int
    wall_seconds: float
    """Counts when the fork sleeps or is stopped; far above `cpu_seconds`, since the machine may be busy."""
    memory_bytes: int
    """Address space on top of what the waiting process has."""


@dataclass
class Job:
    """A fork at work."""

    number: int
    pid: int
    pipe: int
    deadline: float


def read_frame(stream: BinaryIO) -> dict[str, Any] | None:
    """Return the next message, or None at the end."""
    head = _read(stream, 4)
    content = _read(stream, struct.unpack(">I", head)[0]) if head else None
    return json.loads(content) if content else None


def _read(stream: BinaryIO, size: int) -> bytes | None:
    """Return so many bytes, or None if they do not come. The stream has no buffer, and gives what there is."""
    content = b""
    while len(content) < size and (piece := stream.read(size - len(content))):
        content += piece
    return content if len(content) == size else None


def write_frame(stream: BinaryIO, message: dict[str, Any]) -> None:
    content = json.dumps(message).encode()
    stream.write(struct.pack(">I", len(content)) + content)
    stream.flush()


def die_with(parent: int) -> None:
    """Make sure that this process ends when `parent` does."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def load(model: str, vocabulary: int) -> Compile:
    """Return what compiles a text as vLLM's xgrammar backend does (`backend_xgrammar.py`), with `PARTS` at hand."""
    import xgrammar  # noqa: PLC0415  a fork needs none of the above to be slow
    from transformers import AutoTokenizer  # noqa: PLC0415

    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=vocabulary or None)
    # One thread, so that processor seconds are what is counted and no process is started.
    compiler = xgrammar.GrammarCompiler(info, max_threads=1)

    def compile_text(kind: str, text: str) -> None:
        compiled = {
            # As the engine does, which is told `disable_any_whitespace`.
            "json": partial(compiler.compile_json_schema, any_whitespace=False),
            "regex": compiler.compile_regex,
            "grammar": compiler.compile_grammar,
        }[kind](text)
        xgrammar.GrammarMatcher(compiled)

    # Whatever is imported at the first use is imported here: a fork can open no file.
    for kind, text in (("json", json.dumps(PARTS)), ("regex", "a"), ("grammar", 'root ::= "a"')):
        compile_text(kind, text)
    return compile_text


def confine(limits: Limits, keep: int) -> None:
    """Take from this process whatever compiling does not need, but for one descriptor: files, sockets, time, memory."""
    with contextlib.suppress(OSError):
        # The first to go when the machine has no memory; not everywhere may one say so.
        Path("/proc/self/oom_score_adj").write_text("1000")
    os.nice(NICE)
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        # Compilers write their complaints to stderr, with the client's words in them.
        os.dup2(nothing, stream)
    os.closerange(3, keep)
    os.closerange(keep + 1, os.sysconf("SC_OPEN_MAX"))
    ctypes.CDLL(None).prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + limits.memory_bytes,) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (limits.cpu_seconds, limits.cpu_seconds + 1))
    # No descriptor is below it, so none can be made: neither a file nor a socket is opened any more.
    for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE, resource.RLIMIT_NPROC):
        resource.setrlimit(kind, (0, 0))


def fork(compile_text: Compile, limits: Limits, message: dict[str, Any]) -> Job:
    """Start to compile, in a process of its own."""
    pipe, answers = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            die_with(parent)
            confine(limits, answers)
            os.write(answers, json.dumps(judge(compile_text, message)).encode())
        finally:
            os._exit(0)
    os.close(answers)
    return Job(message["id"], pid, pipe, time.monotonic() + limits.wall_seconds)


def judge(compile_text: Compile, message: dict[str, Any]) -> dict[str, Any]:
    """Return the verdict on a text."""
    try:
        compile_text(message["kind"], message["text"])
    except MemoryError:
        return {"verdict": "limit", "reason": "memory"}
    except Exception as error:  # noqa: BLE001  whatever a compiler raises is its verdict
        # How C++ says that there is no memory.
        if "bad_alloc" in str(error):
            return {"verdict": "limit", "reason": "memory"}
        return {"verdict": "refused", "reason": str(error)[:MAX_REASON_CHARS]}
    return {"verdict": "ok", "reason": ""}


def reap(job: Job, *, late: bool = False) -> dict[str, Any]:
    """Return the answer to a job whose fork has ended, or is late and is ended here."""
    if late:
        os.kill(job.pid, signal.SIGKILL)
    said = os.read(job.pipe, 65_536)
    os.close(job.pipe)
    _, status = os.waitpid(job.pid, 0)
    verdict = {"verdict": "limit", "reason": "time"} if late else json.loads(said) if said else _of_status(status)
    return {"id": job.number, **verdict}


def _of_status(status: int) -> dict[str, Any]:
    """Return what the way a fork ended says, when it said nothing itself."""
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    if number == signal.SIGXCPU:
        return {"verdict": "limit", "reason": "time"}
    if number in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS):
        # A stack that is used up, or memory that C++ could not get.
        return {"verdict": "limit", "reason": "memory"}
    # Somebody else's doing, such as the kernel's when the machine has no memory.
    return {"verdict": "failed", "reason": f"signal {number}"}


def serve(compile_text: Compile, limits: Limits, requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer until `requests` ends; then no fork is left."""
    jobs: dict[int, Job] = {}
    while True:
        wait = min((job.deadline for job in jobs.values()), default=time.monotonic() + 3_600) - time.monotonic()
        ready, _, _ = select.select([requests.fileno(), *jobs], [], [], max(0, wait))
        for pipe in [each for each in ready if each in jobs]:
            write_frame(answers, reap(jobs.pop(pipe)))
        for job in [each for each in jobs.values() if time.monotonic() >= each.deadline]:
            write_frame(answers, reap(jobs.pop(job.pipe), late=True))
        if requests.fileno() in ready:
            message = read_frame(requests)
            if message is None:
                for job in jobs.values():
                    os.kill(job.pid, signal.SIGKILL)
                return
            started = fork(compile_text, limits, message)
            jobs[started.pipe] = started


def main() -> None:
    model, *numbers = sys.argv[1:]
    vocabulary, cpu_seconds, wall_seconds, memory_bytes, parent = map(int, numbers)
    die_with(parent)
    # Unbuffered: `select` must see what is left to read. Whatever a library prints goes to stderr.
    requests, answers = os.fdopen(os.dup(0), "rb", buffering=0), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    compile_text = load(model, vocabulary)
    write_frame(answers, {"ready": True})
    serve(compile_text, Limits(cpu_seconds, wall_seconds, memory_bytes), requests, answers)


if __name__ == "__main__":
    main()
