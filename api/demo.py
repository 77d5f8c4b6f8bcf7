"""`promptmill demo`: the main job from nothing to results, the way a user does it, with the stock `openai` SDK."""

import itertools
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from openai import APIError, OpenAI
from openai.types import Batch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from api.stack import up
from api.stack.program import Program, free_port, is_free, promptmill
from jobs.errors import PromptmillError, StartFailed
from jobs.settings import Settings
from jobs.states import TERMINAL

# The example files, and what they ask for.
FILES = {"translate": "English to German and French", "reviews": "the sentiment of reviews"}
POLL_SECONDS = 0.5
SHOWN_ROWS = 4
NOTE = "The model is SmolLM2-135M: it shows the plumbing. It labels passably and cannot translate."
START_SECONDS = 300
# The worker drains, Postgres shuts down.
STOP_SECONDS = 60


@dataclass
class Job:
    """One file on its way."""

    name: str
    batch: Batch
    task: TaskID
    running_since: float | None = None


def run(settings: Settings, out_dir: Path, examples: Path, console: Console) -> None:
    """Start the stack (or use the one that runs on the data directory), run both files, and show what came out.

    Raises:
        StartFailed: the stack did not start.
        PromptmillError: a batch did not complete.
    """
    with _stack(settings, console) as address:
        client = OpenAI(base_url=address.base_url, api_key=address.api_key)
        console.print(f"\n[bold]The queue can be watched at {address.flower_url}[/bold]", end=" ")
        console.print(f"({address.flower_user} / {address.flower_password})\n", highlight=False)
        started = time.monotonic()
        jobs = _run_jobs(client, examples, console)
        console.print()
        _check(jobs)
        for job in jobs:
            _show(job, _download(client, job.batch, out_dir / job.name, console), examples, console)
        rows = sum(job.batch.request_counts.total for job in jobs if job.batch.request_counts)
        console.print(f"{rows} requests in {time.monotonic() - started:.0f} s. {NOTE}\n", highlight=False)


def _check(jobs: list[Job]) -> None:
    for job in jobs:
        if job.batch.status != "completed":
            message = f"{job.name} ended as {job.batch.status}: {job.batch.errors}"
            raise PromptmillError(message)


@contextmanager
def _stack(settings: Settings, console: Console) -> Iterator[up.Address]:
    home = settings.data_dir.resolve()
    if running := up.running_stack(home):
        console.print(f"Using the stack that runs on {home}.")
        yield running
        return
    log = home / "logs" / "up.log"
    log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    log.touch(mode=0o600)
    with log.open("wb") as out:
        process = _start(settings, out)
        try:
            yield _wait_ready(process, home, log, console)
        finally:
            _stop(process, console)


def _start(settings: Settings, out: BinaryIO) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "PROMPTMILL_API__PORT": str(_free(settings.api.host, settings.api.port)),
        "PROMPTMILL_FLOWER__PORT": str(_free(up.LOOPBACK, settings.flower.port)),
    }
    program = Program("up", promptmill("up", "--quiet"), environment=environment, orphan_signal=signal.SIGTERM)
    # In a session of its own: Ctrl-C is for us, and we stop it in order.
    return subprocess.Popen(  # noqa: S603  our own command
        program.command(os.getpid()),
        stdout=out,
        stderr=out,
        env=environment,
        start_new_session=True,
    )


def _free(host: str, port: int) -> int:
    """Return the wanted port, or any other that is free: a demo should not fail on somebody's port 8000."""
    return port if is_free(host, port) else free_port()


def _wait_ready(process: subprocess.Popen[bytes], home: Path, log: Path, console: Console) -> up.Address:
    deadline = time.monotonic() + START_SECONDS
    shown = 0
    with console.status("Starting Postgres, Valkey, API, worker, reconciler, Flower"):
        while time.monotonic() < deadline:
            lines = log.read_text(errors="replace").splitlines()
            for line in itertools.islice(lines, shown, None):
                if line.endswith(("is ready", "are ready")):
                    console.print(line, highlight=False)
            shown = len(lines)
            if address := up.running_stack(home):
                return address
            if process.poll() is not None:
                break
            time.sleep(0.1)
    raise StartFailed(f"The stack did not start: {' '.join(lines[-5:])}")


def _stop(process: subprocess.Popen[bytes], console: Console) -> None:
    process.send_signal(signal.SIGTERM)
    with console.status("Stopping everything"):
        process.wait(STOP_SECONDS)
    console.print("Everything is stopped again.")


def _run_jobs(client: OpenAI, examples: Path, console: Console) -> list[Job]:
    columns = (
        TextColumn("{task.description:<10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(compact=True),
        TextColumn("left"),
    )
    with Progress(*columns, console=console) as progress:
        jobs = [_submit(client, examples, name, progress) for name in FILES]
        try:
            while any(job.batch.status not in TERMINAL for job in jobs):
                time.sleep(POLL_SECONDS)
                for job in jobs:
                    _update(client, job, progress)
        except KeyboardInterrupt:
            # They would run the next time the stack is started.
            for job in jobs:
                with suppress(APIError):
                    client.batches.cancel(job.batch.id)
            raise
    return jobs


def _submit(client: OpenAI, examples: Path, name: str, progress: Progress) -> Job:
    with (examples / f"{name}.jsonl").open("rb") as file:
        uploaded = client.files.create(file=file, purpose="batch")
    batch = client.batches.create(
        input_file_id=uploaded.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"job": name}
    )
    total = batch.request_counts.total if batch.request_counts else 0
    return Job(name, batch, progress.add_task(name, total=total, rate="waiting"))


def _update(client: OpenAI, job: Job, progress: Progress) -> None:
    if job.batch.status in TERMINAL:
        return
    job.batch = client.batches.retrieve(job.batch.id)
    counts, usage = job.batch.request_counts, job.batch.usage
    assert counts
    assert usage
    done, now = counts.completed + counts.failed, time.monotonic()
    if not done:
        return
    # From the first row on: what came before was waiting.
    job.running_since = job.running_since or now - POLL_SECONDS
    seconds = now - job.running_since
    rate = f"{done / seconds:5.1f} rows/s {usage.output_tokens / seconds:6.1f} tokens/s"
    progress.update(job.task, completed=done, total=counts.total, rate=rate)


def _download(client: OpenAI, batch: Batch, folder: Path, console: Console) -> list[dict[str, Any]]:
    """Write output and error file below `folder`; return the rows of the output file."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for kind, file_id in (("output", batch.output_file_id), ("errors", batch.error_file_id)):
        path = folder / f"{kind}.jsonl"
        path.unlink(missing_ok=True)
        if file_id is None:
            continue
        client.files.content(file_id).write_to_file(path)
        console.print(f"{batch.metadata and batch.metadata.get('job')}: {kind} in {path}", soft_wrap=True)
        if kind == "output":
            rows = [json.loads(line) for line in path.read_text().splitlines()]
    return rows


def _show(job: Job, rows: list[dict[str, Any]], examples: Path, console: Console) -> None:
    asked = {line["custom_id"]: line["body"]["messages"][-1]["content"] for line in _lines(examples, job.name)}
    table = Table("custom_id", "asked", "answered", title=f"{job.name}: {FILES[job.name]}", show_lines=True)
    for row in rows[:SHOWN_ROWS]:
        table.add_row(str(row["custom_id"]), asked[row["custom_id"]], _answer(row))
    console.print(table)


def _lines(examples: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (examples / f"{name}.jsonl").read_text().splitlines()]


def _answer(row: dict[str, Any]) -> str:
    text: str = row["response"]["body"]["choices"][0]["message"]["content"]
    try:
        return json.dumps(json.loads(text))
    except ValueError:
        return " ".join(text.split())
