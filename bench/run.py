"""Measures the data plane against the bare thing in the same run: `make bench`. Prints a table in Markdown.

    D1  upload, HTTP to durable rows       / one COPY of the same rows, packed beforehand
    D3  download over HTTP                 / psycopg reading the same rows with COPY in text form
    D4  the API's peak memory above idle during D1 and D3
    Q1  requests through the whole path with an engine that answers at once
    Q4  from creating a batch to the first claim, idle

Runs of ours and of the bare thing alternate; the figures are medians, with the lowest and the highest.
Postgres and Valkey are the embedded ones, fsync on. Needs about 2 GB of disk and 2 minutes.
"""

import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx2
import psutil
import psycopg
from openai import OpenAI
from sqlalchemy import text

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import services  # noqa: E402
from conftest import migrate  # noqa: E402
from memory import Peak  # noqa: E402
from payloads import numbered  # noqa: E402

from api.stack import postgres  # noqa: E402
from api.stack.program import free_port  # noqa: E402
from jobs import pgcopy  # noqa: E402

ROUNDS = 5
BIG_LINES, SMALL_LINES = 50_000, 20_000
# Makes lines of 4.2 KB and of 1 KB.
BIG_PROMPT, SMALL_PROMPT = 4_050, 870
WORDS = "the river bank opened early and the old printer kept working through every long winter night "


def lines(count: int, prompt: int) -> bytes:
    return numbered(count, lambda number: (str(number) + " " + WORDS * 50)[:prompt])


def seconds(action: Callable[[], Any]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def spread(values: Sequence[float], unit: str = "") -> str:
    return f"{statistics.median(values):.2f}{unit} ({min(values):.2f} to {max(values):.2f})"


class Plane:
    """Our processes on one database, and the bare thing beside them."""

    def __init__(self, stack: services.Stack) -> None:
        self.stack = stack
        self.api = stack.api()
        key = stack.key()
        self.http = httpx2.Client(base_url=stack.base_url, headers={"authorization": f"Bearer {key}"}, timeout=300)
        self.sdk = OpenAI(base_url=stack.base_url, api_key=key)
        self.bare = psycopg.connect(stack.database_url, autocommit=True)
        self.bare.execute("CREATE TABLE bare (LIKE lines INCLUDING ALL)")

    def upload(self, data: bytes) -> str:
        form = {"purpose": "batch"}
        reply = self.http.post("/files", data=form, files={"file": ("big.jsonl", data)})
        return str(reply.raise_for_status().json()["id"])

    def bare_copy(self, packed: bytes) -> None:
        with self.bare.cursor().copy("COPY bare FROM STDIN (FORMAT BINARY)") as copy:
            copy.write(packed)

    def download(self, file_id: str) -> int:
        with self.http.stream("GET", f"/files/{file_id}/content") as reply:
            return sum(len(piece) for piece in reply.iter_bytes())

    def bare_read(self) -> int:
        statement = "COPY (SELECT content FROM bare ORDER BY line_no) TO STDOUT"
        with self.bare.cursor().copy(statement) as copy:
            return sum(len(piece) for piece in copy)


def pack(data: bytes) -> bytes:
    """Pack the rows of a file as COPY wants them."""
    rows = (
        pgcopy.row_start(5)
        + pgcopy.field(b"file")
        + pgcopy.int4(number)
        + pgcopy.field(b"row-%d" % (number - 1))
        + pgcopy.field(line)
        + pgcopy.int2(0)
        for number, line in enumerate(data.splitlines(keepends=True), 1)
    )
    return b"".join((pgcopy.HEADER, *rows, pgcopy.TRAILER))


def files(plane: Plane) -> list[str]:
    """D1, D3, D4."""
    data = lines(BIG_LINES, BIG_PROMPT)
    packed = pack(data)
    plane.upload(lines(100, 100))
    uploads, copies, downloads, reads = [], [], [], []
    peak = Peak(plane.api.popen.pid)
    with peak:
        for _ in range(ROUNDS):
            plane.bare.execute("TRUNCATE bare")
            copies.append(seconds(lambda: plane.bare_copy(packed)))
            ids: list[str] = []
            uploads.append(seconds(lambda ids=ids: ids.append(plane.upload(data))))  # type: ignore[misc]
            reads.append(seconds(plane.bare_read))
            downloads.append(seconds(lambda ids=ids: plane.download(ids[0])))  # type: ignore[misc]
            plane.http.delete(f"/files/{ids[0]}")
    size = len(data) / 1e6
    return [
        row("D1 upload", f"{size:.0f} MB, {BIG_LINES} lines", uploads, copies, "0.43 / 0.72"),
        row("D3 download", f"{size:.0f} MB", downloads, reads, "0.9 / 1.6"),
        f"| D4 API memory above idle | {size:.0f} MB | {(peak.peak - peak.idle) / 1e6:.0f} MB | | | 128 / 32 MB |",
    ]


def row(name: str, what: str, ours: list[float], bare: list[float], wanted: str) -> str:
    ratios = [each / mine for each, mine in zip(bare, ours, strict=True)]
    return f"| {name} | {what} | {spread(ours, ' s')} | {spread(bare, ' s')} | {spread(ratios)} | {wanted} |"


def queue(plane: Plane) -> list[str]:
    """Q1, Q4."""
    workers = [plane.stack.worker(), plane.stack.reconciler(), plane.api]
    rates = {"1 KB": run_through(plane, workers, SMALL_PROMPT), "4.2 KB": run_through(plane, workers, BIG_PROMPT)}
    waits = [first_claim(plane) for _ in range(20)]
    table = [
        f"| Q1 whole path, {name} a line | {SMALL_LINES} lines | {spread(rate, ' lines/s')} | "
        f"| {spread(cost, ' µs CPU/line')} | 3,000 / 15,000 lines/s |"
        for name, (rate, cost) in rates.items()
    ]
    return [*table, f"| Q4 create to first claim | idle | {spread(waits, ' ms')} | | | 1,000 / 50 ms |"]


def run_through(plane: Plane, processes: list[services.Process], prompt: int) -> tuple[list[float], list[float]]:
    """Return lines/s from creation to the end, and CPU of ours per line, for each round."""
    file_id = plane.upload(lines(SMALL_LINES, prompt))
    rates, costs = [], []
    for _ in range(ROUNDS):
        before = sum(cpu(process) for process in processes)
        rates.append(SMALL_LINES / seconds(lambda: finish(plane, file_id)))
        costs.append((sum(cpu(process) for process in processes) - before) / SMALL_LINES * 1e6)
    return rates, costs


def cpu(process: services.Process) -> float:
    times = psutil.Process(process.popen.pid).cpu_times()
    return float(times.user + times.system)


def finish(plane: Plane, file_id: str) -> str:
    batch = plane.sdk.batches.create(input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h")
    while batch.status == "in_progress":
        time.sleep(0.02)
        batch = plane.sdk.batches.retrieve(batch.id)
    assert batch.status == "completed"
    return batch.id


def first_claim(plane: Plane) -> float:
    """Return milliseconds from a batch's commit to the claim of its shard, by the database's clock."""
    batch_id = finish(plane, plane.upload(lines(1, 10)))
    statement = text(
        "SELECT extract(epoch FROM a.started_at - b.created_at)::float * 1000 FROM batches b "
        "JOIN shards s ON s.batch_id = b.id JOIN attempts a ON a.shard_id = s.id WHERE b.id = :id"
    )
    engine = plane.stack.engine()
    with engine.connect() as connection:
        wait = connection.execute(statement, {"id": batch_id}).scalar_one()
    engine.dispose()
    return float(wait)


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="promptmill-bench-") as home:
        port = free_port()
        postgres.initialise(Path(home) / "postgres", services.PASSWORD)
        program = postgres.program(Path(home) / "postgres", port, services.PASSWORD)
        with services.running(program, Path(home) / "postgres.log"), services.valkey_server(Path(home)) as redis_url:
            url = postgres.url(port, services.PASSWORD, "postgres")
            migrate(url)
            limits = {"PROMPTMILL_LIMITS__MAX_FILE_BYTES": "300000000", "PROMPTMILL_WORKER__ENGINE": "scripted"}
            stack = services.Stack(Path(home), url, redis_url, limits)
            try:
                report(Plane(stack))
            finally:
                stack.stop()


def report(plane: Plane) -> None:
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, ")
    print(f"medians of {ROUNDS} alternating rounds (lowest to highest)\n")
    print("| scenario | load | ours | bare | ratio | must / aim |\n| --- | --- | --- | --- | --- | --- |")
    for line in (*files(plane), *queue(plane)):
        print(line, flush=True)
    plane.bare.close()
    plane.http.close()


if __name__ == "__main__":
    main()
