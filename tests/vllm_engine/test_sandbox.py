"""F89: what ends, stalls or fills a compiler does so in a process of its own, and costs its row."""

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import smollm2

from jobs.errors import ConfigurationError, EngineError, RequestRejected
from workers.engines import sandbox, sandbox_child
from workers.engines.sandbox import Sandbox

# Takes the compiler three seconds of processor time with this tokenizer: nothing of it is known beforehand.
SLOW = json.dumps(
    {"type": "object", "properties": {x: {"type": "string", "pattern": f"^[^{x}]{{1,128}}$"} for x in "abcdef"}}
)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return smollm2.write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@asynccontextmanager
async def started(model: Path, **limits: Any) -> AsyncIterator[Sandbox]:
    made = Sandbox(model, **limits)
    await made.start()
    try:
        yield made
    finally:
        await made.stop()


def run(model: Path, body: Callable[[Sandbox], Awaitable[None]], **limits: Any) -> None:
    async def all_of_it() -> None:
        async with started(model, **limits) as made:
            await body(made)

    asyncio.run(all_of_it())


async def rejection(made: Sandbox, kind: str, text: str) -> RequestRejected:
    with pytest.raises(RequestRejected) as caught:
        await made.check(kind, text, param="response_format.json_schema")
    error = caught.value
    assert (error.status_code, error.param) == (400, "response_format.json_schema")
    assert len(error.message) < 400
    assert "/project/" not in error.message
    return error


def waiting(made: Sandbox) -> psutil.Process:
    assert made._child
    return psutil.Process(made._child._process.pid)


async def until(condition: Callable[[], Any]) -> Any:
    async with asyncio.timeout(60):
        while not (found := condition()):
            await asyncio.sleep(0.01)
    return found


DEEP = '{"type":"array","items":' * 30_000 + "{}" + "}" * 30_000
LESS_DEEP = '{"type":"array","items":' * 2_000 + "{}" + "}" * 2_000
MANY = json.dumps({"enum": [f"value {n}" for n in range(40_000)]})


def test_what_compiles_may_pass_and_what_does_not_is_refused_in_words(model: Path) -> None:
    async def body(made: Sandbox) -> None:
        for kind, text in (
            ("json", '{"type": "object", "properties": {"a": {"type": "string"}}}'),
            ("json", "{}"),
            ("regex", "[a-z]{1,20}"),
            ("grammar", 'root ::= "a" | "b"'),
            ("json", json.dumps({"enum": [f"value {n}" for n in range(2_000)]})),
        ):
            await made.check(kind, text, param="x")
        assert "JSON" in (await rejection(made, "json", "")).message
        assert (await rejection(made, "json", "false")).code == "invalid_json_schema"
        assert "parenthesis" in (await rejection(made, "regex", "(a")).message
        assert (await rejection(made, "grammar", "no grammar")).code == "invalid_value"
        repeated = json.dumps({"type": "string", "pattern": "^[a-z]{1,129}$"})
        assert "128" in (await rejection(made, "json", repeated)).message, "vLLM's compiler fails too, without a word"
        await made.check("json", repeated.replace("129", "128"), param="x")
        assert "whole number" in (await rejection(made, "json", '{"type": "integer", "minimum": 2.5}')).message

    run(model, body)


BOMBS = {
    "30,000 levels": DEEP,
    "2,000 levels": LESS_DEEP,
    "40,000 values": MANY,
    "a text over the limit": json.dumps({"enum": [f"value {n}" for n in range(70_000)]}),
    "a long answer": SLOW,
}
REGEXES = ["(a+)+$", "(a|b)*a(a|b){25}", "((a{1,100}){1,100}){1,100}", "(a?){1000}a{1000}", "(.*a){20}.*b(.*c){20}"]


def test_a_bomb_costs_its_row_and_nothing_else(model: Path) -> None:
    async def body(made: Sandbox) -> None:
        for name, text in BOMBS.items():
            assert (await rejection(made, "json", text)).code == "invalid_json_schema", name
            await goes_on(made)

    run(model, body, cpu_seconds=1)


def test_an_exponential_regex_ends_one_way_or_the_other(model: Path) -> None:
    """xgrammar 0.2.7 takes all of these in no time; others took minutes (CVE-2026-55574)."""

    async def body(made: Sandbox) -> None:
        for text in REGEXES:
            with contextlib.suppress(RequestRejected):
                await made.check("regex", text, param="x")
            await goes_on(made)

    run(model, body, cpu_seconds=1)


async def goes_on(made: Sandbox) -> None:
    """Make sure that the process that waits has felt nothing, and that nothing is left of the fork."""
    process = waiting(made)
    await until(lambda: not process.children())
    await made.check("json", "{}", param="x")
    assert waiting(made) == process
    assert process.is_running()


def test_a_text_that_takes_too_long_is_ended_and_said_so(model: Path) -> None:
    async def body(made: Sandbox) -> None:
        assert "too long" in (await rejection(made, "json", SLOW)).message

    run(model, body, cpu_seconds=1)


def test_a_text_that_takes_too_much_memory_is_ended_and_said_so(model: Path) -> None:
    async def body(made: Sandbox) -> None:
        assert "too large" in (await rejection(made, "json", MANY)).message

    run(model, body, memory_bytes=4 << 20)


def test_a_compile_that_sleeps_is_ended_by_the_clock(model: Path) -> None:
    """A stopped process uses no processor time."""

    async def body(made: Sandbox) -> None:
        asked = asyncio.create_task(rejection(made, "json", SLOW))
        (fork,) = await until(waiting(made).children)
        fork.suspend()
        assert "too long" in (await asked).message
        assert not fork.is_running()

    run(model, body, wall_seconds=2, cpu_seconds=60)


def test_who_asks_the_same_shares_one_compile_and_its_verdict_is_kept(model: Path) -> None:
    async def body(made: Sandbox) -> None:
        asked = [asyncio.create_task(made.check("json", SLOW, param="x")) for _ in range(20)]
        await until(waiting(made).children)
        assert len(waiting(made).children()) == 1
        asked[0].cancel()
        results = await asyncio.gather(*asked, return_exceptions=True)
        assert isinstance(results[0], asyncio.CancelledError), "who goes away takes nothing from the others"
        assert results[1:] == [None] * 19
        waiting(made).suspend()
        await made.check("json", SLOW, param="x")
        waiting(made).resume()

    run(model, body, cpu_seconds=60)


def test_text_of_usual_length_is_known_beforehand(model: Path) -> None:
    """Processor time of the forks: without `sandbox_child.PARTS` four times as much text takes four times as long."""

    async def taken(made: Sandbox, length: int) -> float:
        properties = {"label": {"enum": ["good", "bad", str(length)]}, "why": {"type": "string", "maxLength": length}}
        before = sum(waiting(made).cpu_times()[2:4])
        await made.check("json", json.dumps({"type": "object", "properties": properties}), param="x")
        return float(sum(waiting(made).cpu_times()[2:4])) - before

    async def body(made: Sandbox) -> None:
        assert 12 * await taken(made, 100) < await taken(made, 400)

    run(model, body, cpu_seconds=60)


def test_the_oldest_verdicts_are_forgotten(model: Path) -> None:
    async def body(made: Sandbox) -> None:
        for number in range(5):
            await made.check("json", json.dumps({"const": number}), param="x")
        assert len(made._verdicts) == 3
        assert not made._asked

    run(model, body, remembered=3)


@pytest.mark.parametrize(
    ("parallel", "tenants", "together"),
    [(2, "abcd", 2), (2, "aaaa", 1), (3, "aaaa", 2), (3, "aaab", 3)],
)
def test_only_so_many_compile_at_a_time(model: Path, parallel: int, tenants: str, together: int) -> None:
    """And of one project never all, so that another's is never far behind."""

    async def body(made: Sandbox) -> None:
        texts = [json.dumps({"type": "string", "maxLength": 800, "title": str(n)}) for n in range(4)]
        pairs = zip(texts, tenants, strict=True)
        asked = asyncio.gather(*(made.check("json", text, param="x", tenant=tenant) for text, tenant in pairs))
        most = 0
        while not asked.done():
            most = max(most, len(waiting(made).children()))
            await asyncio.sleep(0.01)
        await asked
        assert most == together

    run(model, body, parallel=parallel, cpu_seconds=60)


def test_a_compile_stands_back_where_the_engine_wants_the_processor(model: Path) -> None:
    async def body(made: Sandbox) -> None:
        asked = asyncio.create_task(made.check("json", SLOW, param="x"))
        (fork,) = await until(waiting(made).children)
        await until(lambda: fork.nice() == waiting(made).nice() + sandbox_child.NICE)
        await asked

    run(model, body, cpu_seconds=60)


def test_a_fork_that_is_killed_gives_no_verdict(model: Path) -> None:
    """The kernel, out of memory, may have done it. The text is tried once more, and nothing passes unseen."""

    async def body(made: Sandbox) -> None:
        asked = asyncio.create_task(made.check("json", SLOW, param="x"))
        killed: set[int] = set()
        while len(killed) < 2:
            fork = (await until(lambda: [each for each in waiting(made).children() if each.pid not in killed]))[0]
            fork.kill()
            killed.add(fork.pid)
        with pytest.raises(EngineError, match="does not run"):
            await asked
        assert not made._verdicts
        await made.check("json", SLOW, param="x")

    run(model, body, cpu_seconds=60)


def test_a_process_that_is_killed_in_the_middle_is_started_again(model: Path) -> None:
    async def body(made: Sandbox) -> None:
        asked = asyncio.create_task(made.check("json", SLOW, param="x"))
        first = waiting(made)
        (fork,) = await until(first.children)
        first.kill()
        await asked
        assert waiting(made) != first
        await until(lambda: not fork.is_running())

    run(model, body, cpu_seconds=60)


def test_nothing_passes_where_the_sandbox_cannot_run(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="does not start"):
        asyncio.run(Sandbox(tmp_path).start())

    async def body(made: Sandbox) -> None:
        made._model = tmp_path
        waiting(made).kill()
        await until(lambda: made._child and made._child.ended)
        with pytest.raises(EngineError, match="does not run") as caught:
            await made.check("json", "{}", param="x")
        assert not isinstance(caught.value, RequestRejected)

    run(model, body)


def test_stopping_leaves_no_process_and_nobody_waiting(model: Path) -> None:
    async def all_of_it() -> None:
        made = Sandbox(model, cpu_seconds=60)
        await made.start()
        asked = asyncio.create_task(made.check("json", SLOW, param="x"))
        (fork,) = await until(waiting(made).children)
        process = waiting(made)
        await made.stop()
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert not process.is_running()
        await until(lambda: not fork.is_running())

    asyncio.run(all_of_it())


def test_no_orphan_is_left_when_the_worker_is_killed(model: Path) -> None:
    """F16 for the sandbox: kill -9 of the parent, in the middle of a compile."""
    program = f"""
        import asyncio, pathlib
        from workers.engines.sandbox import Sandbox

        async def main():
            made = Sandbox(pathlib.Path({str(model)!r}), cpu_seconds=60)
            await made.start()
            await made.check("json", {SLOW!r}, param="x")

        asyncio.run(main())
    """
    worker = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], env={**os.environ, "PYTHONPATH": ":".join(sys.path)}
    )
    try:
        tree = asyncio.run(until(lambda: _generations(worker.pid)))
    finally:
        worker.kill()
        worker.wait()
    assert len(psutil.wait_procs(tree, timeout=10)[0]) == 2


def _generations(pid: int) -> list[psutil.Process]:
    """Return the process that waits and its fork, once there are both."""
    tree = psutil.Process(pid).children(recursive=True)
    return tree if len(tree) == 2 else []


def confined(action: Callable[[], object]) -> str:
    """Return what comes of an action in a process that may do what a fork may."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        said = "nothing"
        try:
            sandbox_child.confine(sandbox_child.Limits(5, 5, 64 << 20), write)
            action()
        except BaseException as error:  # noqa: BLE001
            said = type(error).__name__
        finally:
            os.write(write, said.encode())
            os._exit(0)
    os.close(write)
    said = os.read(read, 100).decode()
    os.close(read)
    os.waitpid(pid, 0)
    return said


@pytest.mark.parametrize(
    ("action", "ends"),
    [
        (Path("/etc/hostname").read_text, "OSError"),
        (Path("/tmp/promptmill-sandbox").touch, "OSError"),
        (socket.socket, "OSError"),
        (os.pipe, "OSError"),
        (lambda: bytearray(1 << 30), "MemoryError"),
        (lambda: 1 + 1, "nothing"),
    ],
    ids=["read a file", "write a file", "open a socket", "open a pipe", "fill memory", "count"],
)
def test_a_fork_opens_no_file_and_no_socket_and_fills_no_memory(action: Callable[[], object], ends: str) -> None:
    assert confined(action) == ends


def test_the_process_is_told_no_secret(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPTMILL_DATABASE_URL", "postgresql://secret")

    async def body(made: Sandbox) -> None:
        names = waiting(made).environ().keys()
        assert not [name for name in names if name.startswith("PROMPTMILL")]
        assert names <= {*sandbox._PASSED_ON, *sandbox._SURROUNDINGS, "LC_CTYPE"}

    run(model, body)


def test_no_word_of_a_text_reaches_the_log(model: Path) -> None:
    async def body(made: Sandbox) -> None:
        # The compiler complains of both.
        await made.check("json", json.dumps({"allOf": [{"const": "canary"}, {"const": "canary"}]}), param="x")
        await made.check("json", json.dumps({"type": "string", "pattern": "^canary^b$"}), param="x")
        await rejection(made, "grammar", "canary")

    assert "canary" not in said_on_stderr(lambda: run(model, body))


def said_on_stderr(action: Callable[[], None]) -> str:
    """Return what was written there, by whatever process. It is a pipe: a fork may write to no file."""
    read, write = os.pipe()
    before = os.dup(2)
    os.dup2(write, 2)
    os.close(write)
    try:
        action()
    finally:
        os.dup2(before, 2)
        os.close(before)
    with os.fdopen(read, "rb") as pipe:
        return pipe.read().decode()
