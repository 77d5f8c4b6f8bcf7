"""The rows of a file through vLLM's own batch runner, `vllm run-batch`, in the environment of the worker.

    python bench/gpu_run_batch.py --model FOLDER --rows FILE [--arguments '{"max-model-len": 4096}']

The model is loaded once, with the defaults of `vllm run-batch` but for `--arguments`. The first rows warm it up and the
prefix cache is emptied; then all rows, counted from the first that is handed to the engine to the last answer. `run`
does the same on an engine that is there.
"""

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Self

from workers.engines import vllm_api, vllm_arguments

WARM_UP_ROWS = 32

_PLACES = ("vllm.entrypoints.launchers.run_batch", "vllm.entrypoints.openai.run_batch")
run_batch = vllm_api.first(*(f"{place}:run_batch" for place in _PLACES))
make_arg_parser = vllm_api.first(*(f"{place}:make_arg_parser" for place in _PLACES))
build_client = vllm_api.first(
    "vllm.entrypoints.launchers.api_server.entry:build_async_engine_client",
    "vllm.entrypoints.openai.api_server:build_async_engine_client",
)


def parsed(arguments: dict[str, Any], rows: Path, answers: Path) -> argparse.Namespace:
    """Return what `vllm run-batch` makes of its command line."""
    words = [*vllm_arguments.words(arguments), "-i", str(rows), "-o", str(answers)]
    namespace: argparse.Namespace = make_arg_parser(vllm_api.FlexibleArgumentParser()).parse_args(words)
    return namespace


async def run(engine: Any, arguments: dict[str, Any], rows: Path) -> dict[str, Any]:
    """Return seconds and tokens of all rows on an engine; none may fail."""
    with tempfile.TemporaryDirectory() as folder, _Clock(engine) as clock:
        answers = Path(folder) / "answers.jsonl"
        await run_batch(engine, parsed(arguments, rows, answers))
        usages = [json.loads(line)["response"]["body"]["usage"] for line in answers.read_bytes().splitlines()]
    return {
        "seconds": clock.seconds,
        "output_tokens": sum(usage["completion_tokens"] for usage in usages),
        "input_tokens": sum(usage["prompt_tokens"] for usage in usages),
    }


class _Clock:
    """Notes when the first request reaches the engine and when the last one ends."""

    def __init__(self, engine: Any) -> None:
        self._engine, self._generate = engine, engine.generate
        self._first = self._last = 0.0

    def __enter__(self) -> Self:
        self._engine.generate = self._noted
        return self

    def __exit__(self, *_: object) -> None:
        del self._engine.generate

    @property
    def seconds(self) -> float:
        return self._last - self._first

    async def _noted(self, *arguments: Any, **more: Any) -> AsyncIterator[Any]:
        self._first = self._first or time.monotonic()
        async for output in self._generate(*arguments, **more):
            yield output
        self._last = time.monotonic()


async def measure(arguments: dict[str, Any], rows: Path, rounds: int) -> None:
    lines = rows.read_bytes().splitlines(keepends=True)
    with tempfile.TemporaryDirectory() as folder:
        few = Path(folder) / "few.jsonl"
        few.write_bytes(b"".join(lines[:WARM_UP_ROWS]))
        given = parsed(arguments, rows, Path(folder) / "unused")
        async with build_client(given, usage_context=vllm_api.UsageContext.OPENAI_BATCH_RUNNER) as engine:
            await run(engine, arguments, few)
            for _ in range(rounds):
                assert await engine.reset_prefix_cache(), "rows are still running"
                done = await run(engine, arguments, rows)
                figures = {**done, "rows": len(lines), "rate": done["output_tokens"] / done["seconds"]}
                print("run-batch", json.dumps(figures), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--arguments", default="{}", help="arguments of `vllm run-batch`, JSON")
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    named = json.loads(options.rows.open().readline())["body"]["model"]
    arguments = {"model": options.model, "served-model-name": [named], **json.loads(options.arguments)}
    asyncio.run(measure(arguments, options.rows, options.rounds))


if __name__ == "__main__":
    main()
