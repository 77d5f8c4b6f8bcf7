"""Measures the data plane against the bare thing in the same run: `make bench`. Prints a table in Markdown.

    D1 to D4    files in and out                                     bench/uploads.py
    Q1, Q2, Q4  requests through the whole path                      bench/rows.py
    Q3          status polls meanwhile                               bench/polls.py
    Q5          several workers                                      bench/scaling.py
    C1          the whole service with vLLM on the CPU               bench/vllm_cpu.py

Runs of ours and of the bare thing alternate; the figures are medians, with the lowest and the highest. Postgres and
Valkey are the embedded ones, fsync on. Needs about 3 GB of disk and 8 minutes, on a machine that does nothing else: the
load in the first line is that of the minute before. Names choose some: `python bench/run.py uploads rows`.
"""

import os
import platform
import sys
from collections.abc import Callable, Iterator

import measure
import plane
import polls
import rows
import scaling
import uploads
import vllm_cpu

SCENARIOS: dict[str, Callable[[plane.Plane], Iterator[str]]] = {
    "uploads": uploads.report,
    "rows": rows.report,
    "polls": polls.report,
    "scaling": scaling.report,
    "vllm": vllm_cpu.report,
}


def main() -> None:
    os.chdir(plane.ROOT)
    chosen = sys.argv[1:] or [*SCENARIOS]
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    print(f"{machine}, Python {platform.python_version()}\n\n{measure.HEADER}", flush=True)
    for line in report(chosen):
        print(line, flush=True)


def report(chosen: list[str]) -> Iterator[str]:
    for name in chosen:
        with plane.running() as fresh:
            yield from SCENARIOS[name](fresh)


if __name__ == "__main__":
    main()
