"""Q5: one, two, four and eight workers, each with an engine that takes 50 ms a row and eight rows at once.

Each number of workers gets as many rows for each of them. The engines sleep, so that two cores are enough for eight
workers; what is lost, is lost at the claims, at the writing, and at the end, when some have a shard left and others
none.
"""

import statistics
from collections.abc import Iterator

from measure import row, spread
from plane import Plane, lines

ROUNDS = 3
ROWS, CAPACITY, SHARD = 1_000, 8, 64
SLEEP_SECONDS = 0.05
SETTINGS = {
    "WORKER__SCRIPTED_CAPACITY": str(CAPACITY),
    # What docs/settings.md says: the window over the shard, and two.
    "WORKER__MAX_SHARDS": "2",
    "SHARDS__MAX_REQUESTS": str(SHARD),
}


def report(plane: Plane) -> Iterator[str]:
    alone = 0.0
    own = plane.beside(**SETTINGS)
    own.stack.reconciler()
    for count in (1, 2, 4, 8):
        while sum(process.program.name == "worker" for process in own.stack.processes) < count:
            own.stack.worker()
        file_id = own.upload(lines(ROWS * count, 100, f"SLEEP {SLEEP_SECONDS} "))
        rates = [ROWS * count / own.run(file_id)[1] for _ in range(ROUNDS)]
        alone = alone or statistics.median(rates)
        yield row(
            f"Q5 {count} workers, 50 ms a row",
            f"{ROWS * count:,} rows, {CAPACITY} at once in each",
            spread(rates, " rows/s", 0),
            f"{count} x {alone:.0f} rows/s",
            spread([rate / count / alone for rate in rates]),
            wanted="0.85 / 0.97",
        )
    own.close()
