"""A worker whose engine can also be driven bare: one load of the model serves both sides of a comparison.

Takes orders on the Unix socket `BENCH_SOCKET` while it serves as any worker:

    ("mark",)                            forget the steps so far
    ("steps",)                           what the engine did since the mark
    ("bare", rows file, how, window)     run the rows on the engine alone; seconds and tokens
    ("reset",)                           empty the prefix cache; it must be possible

Each is answered with `("done", what)` or `("failed", why)`. `how`: `window` keeps that many rows in the engine (vLLM's
front end only, prompts tokenised beforehand, one output a row); `chunks` runs that many and waits for all before the
next; `run-batch` is vLLM's own batch runner, on this engine and with its arguments.
"""

import asyncio
import itertools
import json
import os
import sys
import threading
import time
import traceback
from multiprocessing.connection import Listener
from pathlib import Path
from typing import Any

import psutil
from vllm import SamplingParams, TokensPrompt
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

from jobs import settings, telemetry
from workers import service
from workers.engines import vllm_arguments
from workers.runtime import Runtime

Step = tuple[float, int, int, float]
RESET_SECONDS = 5


class Bench:
    """The orders, on one engine."""

    def __init__(self, runtime: "MeasuredRuntime") -> None:
        self.engine, self.loop = runtime.engine, runtime.loop
        self._steps: list[Step] = []
        self._preempted = 0
        self._numbers = itertools.count()
        self._cpu = _cpu()
        steps, record = self.engine.steps, self.engine.steps.record

        def note(scheduler: Any, iteration: Any, replica: int = 0) -> None:
            record(scheduler, iteration, replica)
            self._steps.append((time.monotonic(), steps.running, steps.waiting, steps.kv_use))

        steps.record = note

    def serve(self, path: str) -> None:
        with Listener(path, "AF_UNIX") as listener:
            while True:
                with listener.accept() as connection:
                    while True:
                        try:
                            order, *arguments = connection.recv()
                        except EOFError:
                            break
                        connection.send(self._obeyed(order, arguments))

    def _obeyed(self, order: str, arguments: list[Any]) -> tuple[str, Any]:
        try:
            return "done", getattr(self, order)(*arguments)
        except Exception:  # noqa: BLE001  the engine took minutes to load; the next order may do better
            return "failed", traceback.format_exc()

    def mark(self) -> None:
        self._steps.clear()
        self._preempted = self.engine.steps.preempted
        self._cpu = _cpu()

    def steps(self) -> dict[str, Any]:
        """Return means over time, and running and waiting rows for each second.

        From the first step since the mark to the last one; a pause counts as what the step before it left.
        """
        steps = list(self._steps)
        spans = [later[0] - step[0] for step, later in itertools.pairwise(steps)]
        whole = sum(spans) or 1

        def mean(column: int) -> float:
            return sum(float(step[column]) * span for step, span in zip(steps, spans, strict=False)) / whole

        idle = sum(span for step, span in zip(steps, spans, strict=False) if not step[2]) / whole
        series = {int(step[0] - steps[0][0]): (step[1], step[2], round(step[3], 3)) for step in steps}
        return {
            "steps": len(steps),
            "longest_step": max(spans, default=0),
            "mean_running": mean(1),
            "mean_waiting": mean(2),
            "mean_kv": mean(3),
            "nothing_waiting": idle,
            "preempted": self.engine.steps.preempted - self._preempted,
            "cpu_seconds": {name: spent - self._cpu.get(name, 0) for name, spent in _cpu().items()},
            "series": sorted((second, *values) for second, values in series.items()),
        }

    def reset(self) -> None:
        """The engine frees what its last rows held a moment after they have ended."""
        deadline = time.monotonic() + RESET_SECONDS
        while not self._do(self.engine.llm.reset_prefix_cache()):
            assert time.monotonic() < deadline, "rows are still running"
            time.sleep(0.1)

    def bare(self, path: str, how: str, window: int) -> dict[str, Any]:
        bodies = [json.loads(line)["body"] for line in Path(path).read_bytes().splitlines()]
        if how == "run-batch":
            return dict(self._do(self._run_batch(Path(path))))
        prompts = self._do(self._prompts(bodies))
        return dict(self._do(self._bare(prompts, bodies, how, window)))

    def _do(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result()

    async def _prompts(self, bodies: list[dict[str, Any]]) -> list[list[int]]:
        """Tokenise beforehand: this is not the engine's work."""
        tokenizer = self.engine.llm.get_tokenizer()
        tokenizer = await tokenizer if asyncio.iscoroutine(tokenizer) else tokenizer
        template = self.engine._settings.chat_template
        options: dict[str, Any] = {"chat_template": template.read_text()} if template else {}
        return [
            tokenizer.apply_chat_template(
                body["messages"], add_generation_prompt=True, tokenize=True, return_dict=False, **options
            )
            for body in bodies
        ]

    async def _bare(
        self, prompts: list[list[int]], bodies: list[dict[str, Any]], how: str, window: int
    ) -> dict[str, Any]:
        self.mark()
        started = time.monotonic()
        if how == "chunks":
            tokens = 0
            for first in range(0, len(bodies), window):
                chunk = range(first, min(first + window, len(bodies)))
                tokens += sum(await asyncio.gather(*(self._one(prompts[at], bodies[at]) for at in chunk)))
        else:
            turns = asyncio.Semaphore(window)

            async def go(prompt: list[int], body: dict[str, Any]) -> int:
                async with turns:
                    return await self._one(prompt, body)

            tokens = sum(await asyncio.gather(*map(go, prompts, bodies)))
        seconds = time.monotonic() - started
        return {"seconds": seconds, "output_tokens": tokens, "input_tokens": sum(map(len, prompts)), **self.steps()}

    async def _one(self, prompt: list[int], body: dict[str, Any]) -> int:
        schema = body.get("response_format", {}).get("json_schema", {}).get("schema")
        options = SamplingParams(
            max_tokens=body["max_tokens"],
            ignore_eos=body["ignore_eos"],
            temperature=0,
            output_kind=RequestOutputKind.FINAL_ONLY,
            structured_outputs=StructuredOutputsParams(json=schema) if schema else None,
        )
        name = f"bare-{next(self._numbers)}"
        prompt_of = TokensPrompt(prompt_token_ids=prompt)
        outputs = [each async for each in self.engine.llm.generate(prompt_of, options, name)]
        return len(outputs[-1].outputs[0].token_ids)

    async def _run_batch(self, rows: Path) -> dict[str, Any]:
        # A release that moved vLLM's batch runner costs this way to run rows, and no other.
        import gpu_run_batch  # noqa: PLC0415

        arguments = vllm_arguments.serve_arguments(self.engine._settings)
        self.mark()
        return {**await gpu_run_batch.run(self.engine.llm, arguments, rows), **self.steps()}


def _cpu() -> dict[str, float]:
    """Return CPU seconds of this process's front end thread, of all its threads, and of the engine below it."""
    me = psutil.Process()
    loop = next(thread.native_id for thread in threading.enumerate() if thread.name == "engine-loop")
    spent = {thread.id: thread.user_time + thread.system_time for thread in me.threads()}
    below = [child.cpu_times() for child in me.children(recursive=True)]
    return {
        "front_end": spent.get(loop or 0, 0.0),
        "worker": sum(spent.values()),
        "engine": sum(times.user + times.system for times in below),
    }


class MeasuredRuntime(Runtime):
    """A runtime that takes orders beside its work."""

    @property
    def engine(self) -> Any:
        return self._engine

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def start(self) -> None:
        super().start()
        orders = Bench(self)
        threading.Thread(target=orders.serve, args=[os.environ["BENCH_SOCKET"]], daemon=True).start()


if __name__ == "__main__":
    vars(service)["Runtime"] = MeasuredRuntime
    telemetry.configure("info", "worker")
    sys.exit(service.run(settings.load()))
