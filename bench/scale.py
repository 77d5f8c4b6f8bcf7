"""One, two, four and eight workers, as processes of one host and each on a host of its own: `python bench/scale.py`.

Each worker has an engine that takes 50 ms a row and eight rows at once. The engines sleep, so that two cores are enough
for eight workers. Efficiency is the rows a second of N workers over N times those of one, in the same round; rounds of
both kinds take turns. Hosts are network namespaces (`bench/hosts.py`), which take root; without it the rest is run.

The load of the machine stands beside each figure: `others` is the cores that were busy with none of our processes.
"""

import argparse
import contextlib
import dataclasses
import datetime as dt
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import hosts
import psutil
import services
from conftest import migrate
from measure import spread
from plane import SETTINGS, Plane, cpu, lines

from api.stack import postgres, valkey
from api.stack.program import Program, free_port, promptmill

COUNTS = (1, 2, 4, 8)
CAPACITY, SHARD, SLEEP_SECONDS = 8, 64, 0.05
OPTIONS = {
    **SETTINGS,
    "PROMPTMILL_WORKER__SCRIPTED_CAPACITY": str(CAPACITY),
    # What docs/settings.md says: the window over the shard, and two.
    "PROMPTMILL_WORKER__MAX_SHARDS": "2",
    "PROMPTMILL_SHARDS__MAX_REQUESTS": str(SHARD),
}
HEADER = (
    "| workers | rows/s | over N times one | CPU of ours, µs a row | load before | others, cores |\n"
    "| --- | --- | --- | --- | --- | --- |"
)
Start = Callable[[int], None]


@dataclasses.dataclass(frozen=True)
class Run:
    """One batch, and what the machine did meanwhile."""

    kind: str
    round: int
    workers: int
    rows: int
    seconds: float
    load: float
    """Of the minute before."""
    cpu_seconds: dict[str, float]
    """By program."""
    others: float
    """Cores that were busy with nothing of ours, on average."""

    @property
    def rate(self) -> float:
        return self.rows / self.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4_000, help="rows for each worker; 4,000 take 25 s")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="a JSON file for every run")
    asked = parser.parse_args()
    if why_not := hosts.enter():
        print(f"No hosts of their own, processes only: {why_not}.\n")
    with contextlib.ExitStack() as stack:
        plane = stack.enter_context(_plane(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="scale-")))))
        starts = {"processes": lambda _: _start(plane, [])}
        if not why_not:
            starts["hosts"] = _on_hosts(
                plane, [stack.enter_context(hosts.host(number)) for number in range(max(COUNTS))]
            )
        runs = list(_rounds(plane, starts, asked.rows, asked.rounds))
    print("\n".join(_tables(runs)))
    if asked.out:
        asked.out.write_text(json.dumps(_report(runs), indent=1) + "\n")


@contextlib.contextmanager
def _plane(home: Path) -> Iterator[Plane]:
    """Start Postgres, Valkey, an API and a reconciler, all empty, that other hosts can reach; fsync is on."""
    port, redis_port = free_port(), free_port()
    with (
        services.running(_postgres(home, port), home / "postgres.log") as database,
        services.running(_valkey(home, redis_port), home / "valkey.log"),
    ):
        url = postgres.url(port, services.PASSWORD, "postgres")
        migrate(url)
        stack = services.Stack(home, url, valkey.url(redis_port, services.PASSWORD), OPTIONS)
        stack.reconciler()
        with contextlib.closing(Plane(stack, database)) as plane:
            yield plane


def _postgres(home: Path, port: int) -> Program:
    postgres.initialise(home / "postgres", services.PASSWORD)
    with (home / "postgres" / "pg_hba.conf").open("a") as rules:
        rules.write(f"host all all {hosts.NETWORK}.0/24 scram-sha-256\n")
    options = {"listen_addresses": f"127.0.0.1,{hosts.OURS}", "max_connections": "200"}
    return postgres.program(home / "postgres", port, services.PASSWORD, options)


def _valkey(home: Path, port: int) -> Program:
    program = valkey.program(home / "valkey", port, services.PASSWORD)
    config = home / "valkey" / "valkey.conf"
    # A minus: where there is no such address, it does without.
    config.write_text(config.read_text().replace("bind 127.0.0.1", f"bind 127.0.0.1 -{hosts.OURS}"))
    return program


def _on_hosts(plane: Plane, machines: Sequence[hosts.Host]) -> Start:
    there = {
        "PROMPTMILL_DATABASE_URL": plane.stack.database_url.replace("127.0.0.1", hosts.OURS),
        "PROMPTMILL_REDIS_URL": plane.stack.redis_url.replace("127.0.0.1", hosts.OURS),
    }
    return lambda number: _start(plane, machines[number].command, **there)


def _start(plane: Plane, on: Sequence[str], **environment: str) -> None:
    """Start a worker, by way of the command `on`, and wait until it is ready."""
    log = plane.stack.home / f"worker-{time.monotonic_ns()}.log"

    async def ready() -> bool:
        return log.exists() and "worker_ready" in log.read_text(errors="replace")

    own = plane.stack.environment(**environment)
    program = Program("worker", [*on, *promptmill("worker")], ready, environment=own, grace_seconds=40)
    plane.stack.processes.append(services.Process.start(program, log))


def _rounds(plane: Plane, starts: dict[str, Start], rows: int, rounds: int) -> Iterator[Run]:
    files = {count: plane.upload(lines(rows * count, 100, f"SLEEP {SLEEP_SECONDS} ")) for count in COUNTS}
    warm = plane.upload(lines(SHARD * max(COUNTS), 100))
    for number in range(rounds):
        for kind, start in starts.items():
            for count in COUNTS:
                while len(_workers(plane)) < count:
                    start(len(_workers(plane)))
                # What is done once is done before the clock runs.
                plane.run(warm)
                run = _run(plane, files[count], Run(kind, number, count, rows * count, 0, os.getloadavg()[0], {}, 0))
                print(f"{kind} {number} {count}: {run.rate:.1f} rows/s, load {run.load:.1f}", flush=True)
                yield run
            for process in _workers(plane):
                process.stop()
                plane.stack.processes.remove(process)


def _workers(plane: Plane) -> list[services.Process]:
    return [process for process in plane.stack.processes if process.program.name == "worker"]


def _run(plane: Plane, file_id: str, run: Run) -> Run:
    began, before, busy = time.monotonic(), _cpu(plane), _busy()
    _, seconds = plane.run(file_id)
    spent = {name: round(after - before[name], 3) for name, after in _cpu(plane).items()}
    others = (_busy() - busy - sum(spent.values())) / (time.monotonic() - began)
    return dataclasses.replace(run, seconds=seconds, cpu_seconds=spent, others=max(0.0, others))


def _cpu(plane: Plane) -> dict[str, float]:
    spent = {"postgres": cpu(plane.database), "this program": time.process_time()}
    for process in plane.stack.processes:
        name = process.program.name
        spent[name] = spent.get(name, 0) + cpu(process)
    return spent


def _busy() -> float:
    """Return the CPU seconds of all of the machine, since it began."""
    times = psutil.cpu_times()
    return sum(times) - times.idle - times.iowait - times.guest - times.guest_nice


def _tables(runs: Sequence[Run]) -> Iterator[str]:
    for kind in dict.fromkeys(run.kind for run in runs):
        yield f"\n{kind}\n\n{HEADER}"
        for count in COUNTS:
            chosen = [run for run in runs if (run.kind, run.workers) == (kind, count)]
            figures = (
                spread([run.rate for run in chosen], digits=0),
                spread(_efficiency(runs, kind, count), digits=3),
                spread([1e6 * sum(run.cpu_seconds.values()) / run.rows for run in chosen], digits=0),
                spread([run.load for run in chosen], digits=1),
                spread([run.others for run in chosen]),
            )
            yield f"| {count} | {' | '.join(figures)} |"


def _efficiency(runs: Sequence[Run], kind: str, count: int) -> list[float]:
    rates = {(run.kind, run.round, run.workers): run.rate for run in runs}
    rounds = sorted({run.round for run in runs if run.kind == kind})
    return [rates[kind, number, count] / count / rates[kind, number, 1] for number in rounds]


def _report(runs: Sequence[Run]) -> dict[str, object]:
    kinds = dict.fromkeys(run.kind for run in runs)
    return {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "machine": {"cpu": _cpu_name(), "cores": os.cpu_count(), "python": platform.python_version()},
        "engine": {"seconds_a_row": SLEEP_SECONDS, "rows_at_once": CAPACITY, "rows_a_shard": SHARD},
        "efficiency": {
            kind: {count: round(statistics.median(_efficiency(runs, kind, count)), 4) for count in COUNTS}
            for kind in kinds
        },
        "runs": [dataclasses.asdict(run) | {"rate": round(run.rate, 2)} for run in runs],
    }


def _cpu_name() -> str:
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    main()
