"""Q3: how long a client waits for a batch's status while others upload (D1) and run (Q1).

Run as a program it is that client, in a process of its own: `polls.py URL KEY BATCH`. It asks fifty times a second
until its input ends, then prints how long each answer took, seconds, as JSON.
"""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
from measure import percentile, row
from plane import BIG_PROMPT, SMALL_PROMPT, Plane, lines

PAUSE_SECONDS = 0.02
UPLOADS, RUNS = 4, 6


def report(plane: Plane) -> Iterator[str]:
    big, small = lines(50_000, BIG_PROMPT), lines(20_000, SMALL_PROMPT)
    plane.stack.worker()
    plane.stack.reconciler()
    batch_id, _ = plane.run(plane.upload(lines(100, 100)))
    file_id = plane.upload(small)

    def uploads() -> None:
        for _ in range(UPLOADS):
            plane.http.delete(f"/files/{plane.upload(big)}")

    def runs() -> None:
        for _ in range(RUNS):
            plane.run(file_id)

    for name, work in (("idle", lambda: time.sleep(5)), ("D1", uploads), ("Q1", runs)):
        waits = _beside(plane, batch_id, work)
        median, worst = (f"{percentile(waits, share) * 1000:.0f} ms" for share in (0.5, 0.99))
        load = f"{len(waits)} polls"
        yield row(f"Q3 status poll, {name}", load, f"p99 {worst} (median {median})", wanted="100 / 10 ms")


def _beside(plane: Plane, batch_id: str, work: Callable[[], Any]) -> list[float]:
    """Return how long each poll took while `work` ran."""
    argv = [sys.executable, __file__, plane.stack.base_url, plane.key, batch_id]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout
        client.stdout.readline()
        work()
        return list(json.loads(client.communicate()[0]))


def _poll(url: str, key: str, batch_id: str) -> None:
    over, waits = threading.Event(), []

    def wait() -> None:
        sys.stdin.read()
        over.set()

    threading.Thread(target=wait, daemon=True).start()
    with httpx2.Client(headers={"authorization": f"Bearer {key}"}, timeout=60) as client:
        client.get(f"{url}/batches/{batch_id}").raise_for_status()
        print("ready", flush=True)
        while not over.wait(PAUSE_SECONDS):
            began = time.perf_counter()
            client.get(f"{url}/batches/{batch_id}").raise_for_status()
            waits.append(time.perf_counter() - began)
    print(json.dumps(waits))


if __name__ == "__main__":
    _poll(*sys.argv[1:])
