"""Compiles what answers must match, in another process, before an engine does.

    check ─► known? ─► one compile for all who ask ─► waiting process ─► fork with limits ─► verdict

vLLM looks at a schema only as far as its first step when it admits a request (vllm#47312), and compiles it in the
process that serves everybody. A schema, a regular expression or a grammar that takes minutes, all memory or a crash
does so here, and costs its row. Verdicts are kept by hash. Where the sandbox cannot run, nothing passes.
"""

import asyncio
import hashlib
import itertools
import json
import os
import re
import struct
import sys
from collections import OrderedDict
from functools import lru_cache
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from jobs import telemetry
from jobs.errors import ConfigurationError, EngineError, RequestRejected
from workers.engines import sandbox_child, schemas

log = telemetry.get_logger(__name__)

START_SECONDS = 300
# How much longer than the child's own clock the child itself is waited for.
GRACE_SECONDS = 10
MAX_REASON_CHARS = 200
MAX_TEXT_CHARS = 1_000_000

# The settings of the service, with its secrets, are no business of the child's; nor is the device.
_LIBRARIES = ("PATH", "HOME", "LANG", "PYTHONPATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
# Where a tokenizer is that came from the Hub.
_CACHES = ("HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME")
_PASSED_ON = (*_LIBRARIES, *_CACHES)
_SURROUNDINGS = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
}
_LIMITS = {"time": "takes too long to compile", "memory": "is too large or too deep to compile"}
# How xgrammar says that it has a bug: no reason follows.
_BUG = re.compile(r"Check failed: .* is false:\s*$")
_OF_THE_BUG = "does not compile: xgrammar fails, as it does if a 'pattern' repeats something more than 128 times"
# Where in its source a compiler complains, and addresses of its memory.
_NOT_FOR_CLIENTS = re.compile(r"\[\d\d:\d\d:\d\d\]|/\S+:\d+:|0x[0-9a-fA-F]+|[^ -~]")

Verdict = str | None
"""None: it compiles; else what is wrong, in words for the client."""


class _ChildDied(Exception):
    """There is no verdict: the process ended, or has none."""


class Sandbox:
    """One waiting process, at most `parallel` forks at a time. Used from one event loop.

    Args:
        model: a folder with the tokenizer, as the engine loads it.
        vocabulary: how many tokens the engine's model has; 0: as many as the tokenizer.
        cpu_seconds: processor time of one compile.
        memory_bytes: address space of one compile, beyond what the waiting process has.
        parallel: compiles at a time, of one tenant one fewer.
        remembered: verdicts that are kept.
    """

    def __init__(
        self,
        model: Path,
        *,
        vocabulary: int = 0,
        cpu_seconds: int = 5,
        wall_seconds: int = 30,
        memory_bytes: int = 1 << 30,
        parallel: int = 2,
        remembered: int = 10_000,
    ) -> None:
        self._model, self._vocabulary = model, vocabulary
        self._limits = sandbox_child.Limits(cpu_seconds, wall_seconds, memory_bytes)
        self._turns = asyncio.Semaphore(parallel)
        # One place is always left for the others.
        self._share = max(1, parallel - 1)
        self._tenants: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._remembered = remembered
        self._verdicts: OrderedDict[bytes, Verdict] = OrderedDict()
        self._asked: dict[bytes, asyncio.Task[Verdict]] = {}
        self._child: _Child | None = None
        self._starting = asyncio.Lock()

    async def start(self) -> None:
        """Load the tokenizer. Afterwards `check` answers at once.

        Raises:
            ConfigurationError: it cannot be loaded, or there is no compiler.
        """
        try:
            await self._running()
        except _ChildDied as error:
            message = f"The sandbox for JSON schemas does not start with the tokenizer in {self._model}: see its log."
            raise ConfigurationError(message) from error

    async def check(self, kind: str, text: str, *, param: str, tenant: str = "") -> None:
        """Return if the engine can compile the text.

        Args:
            kind: `json` (a JSON schema), `regex` or `grammar` (EBNF).
            text: what the engine will be given.
            param: the parameter to blame.
            tenant: who asks; none has all places at a time, so that many slow texts of one hold up nobody else's.

        Raises:
            RequestRejected: it cannot, or not within the limits.
            EngineError: nobody knows; the request must not go on.
        """
        verdict = await self._verdict(kind, text, tenant)
        if verdict is not None:
            code = "invalid_json_schema" if kind == "json" else "invalid_value"
            raise RequestRejected(f"Invalid value for '{param}': it {verdict}.", code=code, param=param)

    async def stop(self) -> None:
        """End the process and whoever still waits for it."""
        waiting = list(self._asked.values())
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        if self._child:
            await self._child.end()
            self._child = None

    async def _verdict(self, kind: str, text: str, tenant: str) -> Verdict:
        if len(text) > MAX_TEXT_CHARS:
            return _LIMITS["memory"]
        key = _key(kind, text)
        if key in self._verdicts:
            self._verdicts.move_to_end(key)
            return self._verdicts[key]
        if key not in self._asked:
            task = self._asked[key] = asyncio.create_task(self._in_turn(kind, text, tenant))
            task.add_done_callback(lambda done: self._remember(key, done))
        # Somebody who goes away takes nothing from the others.
        return await asyncio.shield(self._asked[key])

    def _remember(self, key: bytes, done: asyncio.Task[Verdict]) -> None:
        del self._asked[key]
        if done.cancelled() or done.exception():
            return
        self._verdicts[key] = done.result()
        if len(self._verdicts) > self._remembered:
            self._verdicts.popitem(last=False)

    async def _in_turn(self, kind: str, text: str, tenant: str) -> Verdict:
        async with self._tenants.setdefault(tenant, asyncio.Semaphore(self._share)), self._turns:
            return await self._compile(kind, text)

    async def _compile(self, kind: str, text: str) -> Verdict:
        for _ in range(2):
            try:
                child = await self._running()
                return _words(await child.ask(kind, text))
            except _ChildDied:
                log.warning("sandbox_died")
        message = "The sandbox for JSON schemas does not run."
        raise EngineError(message, code="engine_error")

    async def _running(self) -> "_Child":
        async with self._starting:
            if self._child is None or self._child.ended:
                if self._child:
                    await self._child.end()
                self._child = await _Child.start(self._model, self._vocabulary, self._limits)
            return self._child


@lru_cache(maxsize=schemas.REMEMBERED)
def _key(kind: str, text: str) -> bytes:
    """Return what verdicts are kept by. Schemas that many rows have come as the same text, found here at once."""
    return hashlib.sha256(f"{kind}\0{text}".encode()).digest()


def _words(answer: dict[str, Any]) -> Verdict:
    """Return the verdict in words for the client.

    Raises:
        _ChildDied: it is none.
    """
    reason = answer["reason"]
    match answer["verdict"]:
        case "ok":
            return None
        case "limit":
            return _LIMITS[reason]
        case "refused":
            return _OF_THE_BUG if _BUG.search(reason) else f"does not compile: {_plain(reason)}"
    raise _ChildDied


def _plain(reason: str) -> str:
    """Return the first line of a compiler's complaint, without what is not for clients."""
    first, *_ = [*reason.strip().splitlines(), ""]
    return " ".join(_NOT_FOR_CLIENTS.sub(" ", first).split())[:MAX_REASON_CHARS].rstrip(".")


class _Child:
    """The waiting process, from start to end."""

    def __init__(self, process: asyncio.subprocess.Process, limits: sandbox_child.Limits) -> None:
        self._process = process
        self._limits = limits
        self._numbers = itertools.count()
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._reading: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, model: Path, vocabulary: int, limits: sandbox_child.Limits) -> "_Child":
        """Return a process that has the tokenizer loaded.

        Raises:
            _ChildDied: it has not.
        """
        numbers = (vocabulary, limits.cpu_seconds, int(limits.wall_seconds), limits.memory_bytes, os.getpid())
        passed_on = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            sandbox_child.__file__,
            str(model),
            *map(str, numbers),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=passed_on | _SURROUNDINGS,
        )
        child = cls(process, limits)
        try:
            async with asyncio.timeout(START_SECONDS):
                await child._receive()
        except BaseException as error:
            await child.end()
            if isinstance(error, (TimeoutError, asyncio.IncompleteReadError)):
                raise _ChildDied from error
            raise
        child._reading = asyncio.create_task(child._read())
        return child

    @property
    def ended(self) -> bool:
        return self._reading is None or self._reading.done()

    async def ask(self, kind: str, text: str) -> dict[str, Any]:
        """Return the answer to one text.

        Raises:
            _ChildDied: there is none.
        """
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        content = json.dumps({"id": number, "kind": kind, "text": text}).encode()
        try:
            async with asyncio.timeout(self._limits.wall_seconds + GRACE_SECONDS):
                if self.ended:
                    raise _ChildDied
                self._stdin.write(struct.pack(">I", len(content)) + content)
                await self._stdin.drain()
                return dict(await answer)
        except (TimeoutError, OSError) as error:
            # It hangs, with whatever else it was asked.
            await self.end()
            raise _ChildDied from error
        finally:
            del self._answers[number]

    async def end(self) -> None:
        """End the process. Its forks end with it."""
        if self._process.returncode is None:
            self._process.kill()
        self._stdin.close()
        await self._process.wait()
        if self._reading:
            await asyncio.gather(self._reading, return_exceptions=True)

    @property
    def _stdin(self) -> asyncio.StreamWriter:
        assert self._process.stdin
        return self._process.stdin

    async def _receive(self) -> dict[str, Any]:
        assert self._process.stdout
        size = struct.unpack(">I", await self._process.stdout.readexactly(4))[0]
        message: dict[str, Any] = json.loads(await self._process.stdout.readexactly(size))
        return message

    async def _read(self) -> None:
        """Hand out answers until the process ends; then nobody waits for it any more."""
        try:
            while True:
                message = await self._receive()
                answer = self._answers.get(message["id"])
                if answer and not answer.done():
                    answer.set_result(message)
        except (asyncio.IncompleteReadError, OSError):
            for answer in self._answers.values():
                if not answer.done():
                    answer.set_exception(_ChildDied())
