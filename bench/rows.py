"""Q1, Q2, Q4: requests through the whole path, with an engine that answers at once.

Q1  lines/s from the call that creates a batch to its end
Q2  the same / one Celery task for each line, on the same Valkey
Q4  from creating a batch to the claim of its first shard, idle
"""

import time
from collections.abc import Iterator

import naive_celery
from measure import ratios, row, seconds, spread
from plane import BIG_PROMPT, SMALL_PROMPT, Plane, cpu, lines, script
from services import Process

ROUNDS, NAIVE_ROUNDS = 5, 3
LINES, NAIVE_LINES = 20_000, 2_000


def report(plane: Plane) -> Iterator[str]:
    parts = {
        "worker": plane.stack.worker(),
        "API": plane.api,
        "reconciler": plane.stack.reconciler(),
        "Postgres": plane.database,
    }
    for name, prompt in (("1 KB", SMALL_PROMPT), ("4.2 KB", BIG_PROMPT)):
        rates, costs = _through(plane, parts, prompt)
        spent = ", ".join(f"{part} {cost:.0f}" for part, cost in costs.items())
        load = f"{LINES:,} lines"
        yield row(
            f"Q1 whole path, {name} a line",
            load,
            spread(rates, " lines/s", 0),
            "",
            f"µs CPU a line: {spent}",
            wanted="3,000 / 15,000 lines/s",
        )
    yield _naive(plane)
    waits = [_first_claim(plane) for _ in range(20)]
    yield row("Q4 create to first claim", "idle, 20 times", spread(waits, " ms", 0), wanted="1,000 / 50 ms")


def _through(plane: Plane, parts: dict[str, Process], prompt: int) -> tuple[list[float], dict[str, float]]:
    """Return lines/s of each round, and the CPU of each process in all of them, microseconds a line."""
    file_id = plane.upload(lines(LINES, prompt))
    plane.run(file_id)
    before = {name: cpu(process) for name, process in parts.items()}
    rates = [LINES / plane.run(file_id)[1] for _ in range(ROUNDS)]
    spent = {name: cpu(process) - before[name] for name, process in parts.items()}
    return rates, {name: each / ROUNDS / LINES * 1e6 for name, each in spent.items()}


def _naive(plane: Plane) -> str:
    """Run the lines as Celery tasks and as a batch, in turn."""
    data = lines(LINES, SMALL_PROMPT)
    file_id = plane.upload(data)
    texts = data.decode().splitlines()[:NAIVE_LINES]
    naive_celery.app.conf.update(broker_url=plane.stack.redis_url)
    argv = ["-m", "celery", "--workdir", "bench", "-A", "naive_celery", "worker", "--concurrency", "2", "--loglevel"]
    ours, naive = [], []
    with script(plane, "naive-celery", [*argv, "info"], "ready.", NAIVE_REDIS_URL=plane.stack.redis_url):
        _run_naively(plane, texts[:100])
        for _ in range(NAIVE_ROUNDS):
            naive.append(len(texts) / seconds(lambda: _run_naively(plane, texts)))
            ours.append(LINES / plane.run(file_id)[1])
    figures = spread(ours, " lines/s", 0), spread(naive, " lines/s", 0), spread(ratios(ours, naive), digits=0)
    return row("Q2 whole path / a Celery task a line", "1 KB a line", *figures, wanted="8 / 37")


def _run_naively(plane: Plane, texts: list[str]) -> None:
    """Send each line as a task; return when none waits or is with a worker that has not begun it."""
    for line in texts:
        naive_celery.run_line.delay(line)
    with plane.stack.redis() as broker:
        while broker.llen(naive_celery.QUEUE) or broker.hlen("unacked"):
            time.sleep(0.02)


def _first_claim(plane: Plane) -> float:
    """Return milliseconds from a batch's commit to the claim of its shard, by the database's clock."""
    batch_id, _ = plane.run(plane.upload(lines(1, 10)))
    (wait,) = plane.bare.execute(
        "SELECT extract(epoch FROM a.started_at - b.created_at)::float * 1000 FROM batches b "
        "JOIN shards s ON s.batch_id = b.id JOIN attempts a ON a.shard_id = s.id WHERE b.id = %s",
        [batch_id],
    ).fetchone() or (0.0,)
    return float(wait)
