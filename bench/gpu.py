"""Measures the whole service on a GPU against the bare engine: `python bench/gpu.py --help`.

    G1  output tokens/s from the first claim to the last durable result  / the same rows on the engine alone
    G2  the same from the upload to the downloaded result
    G3  G1 with prompts and answers of other traces; G3-labelling        one of them alone
    G4  G1 with a small model, where Python is the limit and not the GPU
    G5  the same rows through vLLM's batch runner on the same engine, with our arguments
    G5-chunks  other ways to feed the same engine: chunks with a wait, ten at a time
    G9  twenty small batches                                             / one batch of the same rows
    G11-1, G11-100  answers that follow JSON schemas, one and a hundred  / the same on the engine alone
    TEXTS no figure: answers of real weights, to compare with those of `LLM.chat`

Both sides use one engine, loaded once and warmed up, in turn; who is first changes from round to round, and the prefix
cache is emptied before each run. No run has a schema that another one had. A scenario that fails costs itself.

Ours goes through HTTP, Postgres (fsync on), Valkey, Celery and a worker; bare is vLLM's front end fed from a window,
its prompts tokenised beforehand. Writes `results.json` into the folder `--out` and prints tables in Markdown.

`LLM.generate` and `vllm run-batch` with its defaults load a model of their own: `bench/gpu_llm.py`,
`bench/gpu_run_batch.py`. `bench/gpu_queue.sh` has the calls for half an hour.

Runs in the environment of the API. The worker and vLLM run in another: `--worker-python`.
"""

import argparse
import contextlib
import json
import os
import shlex
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import Any

from openai import OpenAI
from sqlalchemy import text

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import measure  # noqa: E402
import services  # noqa: E402
import shapes  # noqa: E402
from conftest import migrate  # noqa: E402
from measure import spread  # noqa: E402

from api.stack import postgres  # noqa: E402
from api.stack.program import Program, free_port  # noqa: E402

MODEL_NAME = "bench"
ARGUMENTS = "PROMPTMILL_WORKER__VLLM__ARGUMENTS"
LOAD_SECONDS = 900
POOL_SIZE = "kv-cache-memory-bytes"


@dataclass
class Lab:
    """The service, its engine driven bare, and the results so far."""

    stack: services.Stack
    sdk: OpenAI
    orders: list[Connection]
    """One for each worker."""
    out: Path
    window: int
    results: list[dict[str, Any]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    """Scenarios, as they were asked for."""
    schemas: int = 0
    """How many have been made: each is new to the engine."""

    def order(self, *words: Any) -> list[Any]:
        """Give an order to every worker; return their answers."""
        for worker in self.orders:
            worker.send(words)
        return self._answers()

    def _answers(self) -> list[Any]:
        """Hear every worker out, so that the next order gets its own answer."""
        heard = [worker.recv() for worker in self.orders]
        for how, what in heard:
            if how == "failed":
                raise RuntimeError(what)
        return [what for _, what in heard]

    def share_out(self, file: Path, how: str, window: int) -> dict[str, Any]:
        """Run the rows of a file bare, each worker its part; seconds are those of the slowest."""
        lines = file.read_bytes().splitlines(keepends=True)
        for number, worker in enumerate(self.orders):
            part = self.out / f"part-{number}.jsonl"
            part.write_bytes(b"".join(lines[number :: len(self.orders)]))
            worker.send(("bare", str(part), how, window))
        parts = self._answers()
        sums = {name: sum(part[name] for part in parts) for name in ("output_tokens", "input_tokens")}
        return {**together(parts), **sums, "seconds": max(part["seconds"] for part in parts)}

    def file(self, shape: str, count: int, schemas: int = 0) -> Path:
        """Write rows; they are the same each time, their schemas are not."""
        path = self.out / f"{shape}-{count}-{schemas}.jsonl"
        forms = shapes.label_schemas(schemas, self.schemas)
        self.schemas += schemas
        path.write_bytes(b"".join(shapes.rows(shapes.SHAPES[shape], count, MODEL_NAME, forms)))
        return path

    def keep(self, **result: Any) -> dict[str, Any]:
        self.results.append(result)
        (self.out / "results.json").write_text(json.dumps(self.results))
        steps = f"running {result.get('mean_running', 0):.0f} kv {result.get('mean_kv', 0):.2f}"
        rate = result["output_tokens"] / result["seconds"]
        print(
            f"{result['scenario']} {result['side']}: {rate:.0f} tok/s, {result['rows'] / result['seconds']:.2f} rows/s,"
            f" {result['seconds']:.1f} s, {steps}",
            flush=True,
        )
        return result


def ours(lab: Lab, scenario: str, files: list[Path]) -> dict[str, Any]:
    """Run files as batches, all at once; keep tokens, seconds and what the engine did."""
    lab.order("reset")
    began = time.monotonic()
    uploaded = [lab.sdk.files.create(file=path.open("rb"), purpose="batch").id for path in files]
    lab.order("mark")
    batches = [
        lab.sdk.batches.create(input_file_id=each, endpoint="/v1/chat/completions", completion_window="24h")
        for each in uploaded
    ]
    while any(batch.status in ("in_progress", "finalizing") for batch in batches):
        time.sleep(0.1)
        batches = [
            lab.sdk.batches.retrieve(batch.id) if batch.status in ("in_progress", "finalizing") else batch
            for batch in batches
        ]
    sizes = [len(lab.sdk.files.content(str(batch.output_file_id)).content) for batch in batches]
    whole = time.monotonic() - began
    counts = [batch.request_counts for batch in batches if batch.request_counts]
    assert all(batch.status == "completed" for batch in batches), batches
    assert not sum(count.failed for count in counts), batches
    usage = [batch.usage for batch in batches if batch.usage]
    return lab.keep(
        scenario=scenario,
        side="ours",
        seconds=_seconds(lab, [batch.id for batch in batches]),
        whole_seconds=whole,
        rows=sum(count.total for count in counts),
        output_tokens=sum(each.output_tokens for each in usage),
        input_tokens=sum(each.input_tokens for each in usage),
        bytes=sum(sizes),
        **together(lab.order("steps")),
    )


def together(steps: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what several engines did at once: sums of rows, means of the rest, the plot of the first."""
    added = {name: sum(each[name] for each in steps) for name in ("mean_running", "mean_waiting", "preempted")}
    means = {name: statistics.mean(each[name] for each in steps) for name in ("mean_kv", "nothing_waiting", "steps")}
    return {**steps[0], **added, **means}


def _seconds(lab: Lab, batch_ids: list[str]) -> float:
    """Return the time from the first claim to the last durable result, by the database's clock."""
    statement = text(
        "SELECT extract(epoch FROM max(b.finalizing_at) - min(a.started_at))::float FROM batches b "
        "JOIN shards s ON s.batch_id = b.id JOIN attempts a ON a.shard_id = s.id WHERE b.id = ANY(:ids)"
    )
    engine = lab.stack.engine()
    with engine.connect() as connection:
        seconds = connection.execute(statement, {"ids": batch_ids}).scalar_one()
    engine.dispose()
    return float(seconds)


def bare(lab: Lab, scenario: str, file: Path, how: str = "window", window: int = 0) -> dict[str, Any]:
    lab.order("reset")
    done = lab.share_out(file, how, window or lab.window)
    rows = sum(1 for _ in file.open("rb"))
    side = how if not window else f"{how} of {window}"
    return lab.keep(scenario=scenario, side="bare" if side == "window" else side, rows=rows, **done)


# Scenarios.


def compare(lab: Lab, scenario: str, made: Callable[[], Path], rounds: int, how: str = "window") -> None:
    """Run both sides in each round, in turn the one and the other first; `made` makes the rows of one run."""
    sides = [lambda: ours(lab, scenario, [made()]), lambda: bare(lab, scenario, made(), how)]
    for number in range(rounds):
        for run in sides if number % 2 == 0 else reversed(sides):
            run()


def shaped(lab: Lab, scenario: str, shape: str, count: int, rounds: int) -> None:
    compare(lab, f"{scenario} {shape}", lambda: lab.file(shape, count), rounds)


def g1(lab: Lab, count: int, rounds: int) -> None:
    shaped(lab, "G1", "translation", count, rounds)


def g3(lab: Lab, count: int, rounds: int) -> None:
    for shape, part in (("sharegpt", 2), ("azure-conv", 5), ("labelling", 1)):
        shaped(lab, "G3", shape, max(1, count // part), rounds)


def g3_labelling(lab: Lab, count: int, rounds: int) -> None:
    shaped(lab, "G3", "labelling", count, rounds)


def g4(lab: Lab, count: int, rounds: int) -> None:
    shaped(lab, "G4", "sharegpt", count, rounds)


def g5(lab: Lab, count: int, rounds: int) -> None:
    file = lab.file("translation", count)
    compare(lab, "G5 translation", lambda: file, rounds, "run-batch")


def g5_chunks(lab: Lab, count: int, _: int) -> None:
    file = lab.file("translation", count)
    bare(lab, "G5 translation", file, "chunks", 256)
    bare(lab, "G5 ten at a time", lab.file("translation", min(count, max(50, count // 8))), "window", 10)


def g9(lab: Lab, count: int, rounds: int) -> None:
    whole = lab.file("translation", count)
    lines = whole.read_bytes().splitlines(keepends=True)
    pieces = []
    for number in range(20):
        path = lab.out / f"piece-{number}.jsonl"
        path.write_bytes(b"".join(lines[number::20]))
        pieces.append(path)
    sides = [("G9 twenty batches", pieces), ("G9 one batch", [whole])]
    for number in range(rounds):
        for scenario, files in sides if number % 2 == 0 else reversed(sides):
            ours(lab, scenario, files)


def g11_1(lab: Lab, count: int, rounds: int) -> None:
    compare(lab, "G11 one schema", lambda: lab.file("translation", count, 1), rounds)


def g11_100(lab: Lab, count: int, rounds: int) -> None:
    compare(lab, "G11 a hundred schemas", lambda: lab.file("translation", count, 100), rounds)


def texts(lab: Lab, count: int, _: int) -> None:
    """Write what the service answers to real questions, for a comparison with `LLM.chat` (`bench/gpu_llm.py`)."""
    path = lab.out / "questions.jsonl"
    path.write_bytes(b"".join(shapes.questions(count, MODEL_NAME)))
    file = lab.sdk.files.create(file=path.open("rb"), purpose="batch")
    batch = lab.sdk.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    while batch.status in ("in_progress", "finalizing"):
        time.sleep(0.1)
        batch = lab.sdk.batches.retrieve(batch.id)
    lines = lab.sdk.files.content(str(batch.output_file_id)).content.splitlines()
    rows = [json.loads(line) for line in lines]
    told = [
        {"custom_id": row["custom_id"], "text": row["response"]["body"]["choices"][0]["message"]["content"]}
        for row in rows
    ]
    (lab.out / "texts.jsonl").write_text("".join(json.dumps(text) + "\n" for text in told))


@dataclass(frozen=True)
class Scenario:
    """What to run, and with how many rows if nobody says."""

    run: Callable[[Lab, int, int], None]
    rows: int = 2_000


SCENARIOS = {
    "G1": Scenario(g1),
    "G3": Scenario(g3),
    "G3-labelling": Scenario(g3_labelling),
    "G4": Scenario(g4, 2_400),
    "G5": Scenario(g5),
    "G5-chunks": Scenario(g5_chunks),
    "G9": Scenario(g9),
    "G11-1": Scenario(g11_1),
    "G11-100": Scenario(g11_100),
    "TEXTS": Scenario(texts, 80),
}


def attempt(lab: Lab, asked: str, options: argparse.Namespace) -> None:
    """Run one scenario, `NAME:rows:rounds`. What goes wrong in it is told: the engine took minutes to load."""
    try:
        name, *more = asked.split(":")
        scenario = SCENARIOS[name]
        given = [*map(int, more), *[options.rows or scenario.rows, options.rounds][len(more) :]]
        scenario.run(lab, *given)
    except Exception:  # noqa: BLE001
        traceback.print_exc()
        print(f"{asked} failed; known are {', '.join(SCENARIOS)}", flush=True)
        lab.failed.append(asked)


# The service.


@contextlib.contextmanager
def service(
    home: Path, settings: dict[str, str], worker: list[str], count: int
) -> Iterator[tuple[services.Stack, list[Connection]]]:
    port = free_port()
    postgres.initialise(home / "postgres", services.PASSWORD)
    program = postgres.program(home / "postgres", port, services.PASSWORD)
    with services.running(program, home / "postgres.log"), services.valkey_server(home) as redis_url:
        url = postgres.url(port, services.PASSWORD, "postgres")
        migrate(url)
        stack = services.Stack(home, url, redis_url, settings)
        try:
            stack.api()
            stack.reconciler()
            began = time.monotonic()
            workers = _workers(stack, worker, count)
            print(f"{count} engines loaded in {time.monotonic() - began:.0f} s", flush=True)
            yield stack, workers
        finally:
            stack.stop()


def _workers(stack: services.Stack, command: list[str], count: int) -> list[Connection]:
    """Start workers; loading a large model takes minutes.

    One after the other, unless their pools have a given size: while it loads, an engine measures what is free.
    """
    loading = (_worker(stack, command, number) for number in range(count))
    at_once = POOL_SIZE in stack.settings.get(ARGUMENTS, "")
    return [_connected(*each) for each in (list(loading) if at_once else loading)]


def _worker(stack: services.Stack, command: list[str], number: int) -> tuple[services.Process, Path]:
    socket = stack.home / f"orders-{number}.sock"
    argv = ["/usr/bin/env", f"BENCH_SOCKET={socket}", *command, str(ROOT / "bench" / "gpu_worker.py")]
    program = Program("worker", argv, environment=stack.environment(), grace_seconds=60)
    stack.processes.append(services.Process.start(program, stack.home / f"worker-{number}.log"))
    return stack.processes[-1], socket


def _connected(worker: services.Process, socket: Path) -> Connection:
    """Wait until the engine is loaded and takes orders."""
    deadline = time.monotonic() + LOAD_SECONDS
    while True:
        try:
            return Client(str(socket), "AF_UNIX")
        except (FileNotFoundError, ConnectionRefusedError):
            assert worker.popen.poll() is None, f"the worker ended: {worker.tail()}"
            assert time.monotonic() < deadline, f"the worker is not ready: {worker.tail()}"
            time.sleep(0.1)


def worker_settings(options: argparse.Namespace) -> dict[str, str]:
    engine = {
        "model": options.model,
        "model_name": MODEL_NAME,
        "context_tokens": options.context,
        "max_sequences": options.sequences,
        "step_tokens": options.step_tokens,
        "quantization": options.quantization,
        "kv_cache": options.kv_cache,
        "dtype": options.dtype,
        "eager": options.eager,
        "gpu_memory_share": options.memory_share,
        "arguments": json.dumps({"load-format": options.load_format, **json.loads(options.arguments)}),
        **({"chat_template": options.chat_template} if options.chat_template else {}),
    }
    named = {f"PROMPTMILL_WORKER__VLLM__{name.upper()}": str(value) for name, value in engine.items()}
    return {"PROMPTMILL_WORKER__ENGINE": "vllm", **named}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="checkpoint folder")
    parser.add_argument("--chat-template", default="")
    parser.add_argument("--load-format", default="auto", help="dummy: random weights")
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--sequences", type=int, default=512)
    parser.add_argument("--step-tokens", type=int, default=16_384)
    parser.add_argument("--quantization", default="checkpoint")
    parser.add_argument("--kv-cache", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--memory-share", type=float, default=0.92)
    parser.add_argument("--workers", type=int, default=1, help="workers, each with an engine, on the one GPU")
    parser.add_argument("--arguments", default="{}", help="further arguments of vLLM, JSON")
    parser.add_argument("--rows", type=int, help="of each scenario; if not given, its own number: 2,000, G4 2,400")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scenarios", default="G1", help=f"of {', '.join(SCENARIOS)}; with ':rows:rounds' of its own")
    parser.add_argument("--wait", type=float, default=0, help="seconds to wait for more scenarios (see `plan`)")
    parser.add_argument("--worker-python", default=".venv-vllm/bin/python", help="command of the worker's Python")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    options = parse()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="promptmill-bench-") as home:
        settings = worker_settings(options)
        try:
            with service(Path(home), settings, shlex.split(options.worker_python), options.workers) as (stack, orders):
                sdk = OpenAI(base_url=stack.base_url, api_key=stack.key(), max_retries=0)
                lab = Lab(stack, sdk, orders, options.out, options.sequences + 64)
                warm_up(lab, min(32, options.rows or 32))
                for asked in plan(options):
                    attempt(lab, asked, options)
                print(f"{table(lab.results)}\n\n{ratios(lab.results)}")
                if lab.failed:
                    sys.exit(f"failed: {', '.join(lab.failed)}")
        finally:
            for log in Path(home).glob("*.log"):
                (options.out / log.name).write_bytes(log.read_bytes()[-200_000:])


def plan(options: argparse.Namespace) -> Iterator[str]:
    """Yield the scenarios asked for, then those that appear as lines of `OUT/more`, until none has for a while.

    Loading a large model takes minutes; what comes next may depend on what came out.
    """
    yield from options.scenarios.split(",")
    more, done = options.out / "more", 0
    until = time.monotonic() + options.wait
    while time.monotonic() < until:
        lines = more.read_text().splitlines() if more.exists() else []
        if len(lines) == done:
            time.sleep(1)
            continue
        yield lines[done]
        done, until = done + 1, time.monotonic() + options.wait


def warm_up(lab: Lab, count: int) -> None:
    """Let kernels be compiled, tables be made and every path be taken on both sides, before anything counts."""
    for shape, schemas in (("labelling", 0), ("translation", 1)):
        compare(lab, "warm-up", partial(lab.file, shape, count, schemas), 1)
    lab.results.clear()


def table(results: list[dict[str, Any]]) -> str:
    """Return medians by scenario and side, with the lowest and the highest."""
    lines = ["| scenario | side | output tokens/s | rows/s | mean running | KV in use | nothing waiting | preempted |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for scenario, side in dict.fromkeys((each["scenario"], each["side"]) for each in results):
        runs = [each for each in results if (each["scenario"], each["side"]) == (scenario, side)]
        middle = statistics.median
        lines.append(
            f"| {scenario} | {side} | {spread(rates(runs), digits=0)} "
            f"| {middle(each['rows'] / each['seconds'] for each in runs):.2f} "
            f"| {middle(each['mean_running'] for each in runs):.0f} | {middle(each['mean_kv'] for each in runs):.0%} "
            f"| {middle(each['nothing_waiting'] for each in runs):.0%} | {sum(each['preempted'] for each in runs)} |"
        )
    return "\n".join(lines)


def rates(runs: list[dict[str, Any]], seconds: str = "seconds") -> list[float]:
    """Return output tokens/s of each run."""
    return [each["output_tokens"] / each[seconds] for each in runs]


def ratios(results: list[dict[str, Any]]) -> str:
    """Return ours over the other side, round by round: from claim to result (G1), from upload to download (G2)."""
    lines = ["| scenario | against | ours / it | G2: ours from upload to download, tokens/s | G2 / it |"]
    lines.append("| --- | --- | --- | --- | --- |")
    for scenario, side in dict.fromkeys((each["scenario"], each["side"]) for each in results):
        mine, other = (
            [each for each in results if (each["scenario"], each["side"]) == (scenario, who)] for who in ("ours", side)
        )
        if side != "ours" and len(mine) == len(other):
            lines.append(f"| {scenario} | {side} | {' | '.join(_compared(mine, other))} |")
    return "\n".join(lines)


def _compared(mine: list[dict[str, Any]], other: list[dict[str, Any]]) -> list[str]:
    whole, its = rates(mine, "whole_seconds"), rates(other)
    of_claim, of_upload = measure.ratios(rates(mine), its), measure.ratios(whole, its)
    return [spread(of_claim, digits=3), spread(whole, digits=0), spread(of_upload, digits=3)]


if __name__ == "__main__":
    os.chdir(ROOT)
    main()
