"""F97: workers whose clocks are a day off, in other time zones, and a database whose clock jumps. Nothing ends early.

`tests/integration/test_clock.py` has the rules; here are the processes.
"""

import time
from pathlib import Path

import psycopg
import pytest
import services
from clients import User, done
from payloads import numbered

# Python runs it at the start of each process that finds it.
SITECUSTOMIZE = """
import os
import time

offset = float(os.environ["CLOCK_OFFSET"])
time_, time_ns = time.time, time.time_ns
time.time = lambda: time_() + offset
time.time_ns = lambda: time_ns() + int(offset * 1e9)
"""
DAY = 86_400


@pytest.fixture
def off(tmp_path: Path) -> str:
    folder = tmp_path / "clock"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(SITECUSTOMIZE)
    return str(folder)


def set_clock(stack: services.Stack, offset: str) -> None:
    """Shift the database's clock, for everybody at once."""
    with psycopg.connect(stack.database_url, autocommit=True) as connection:
        name = connection.info.dbname
        connection.execute(f"ALTER DATABASE {name} SET promptmill.clock_offset = '{offset}'")
        connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


def test_a_batch_completes_whatever_the_clocks_say(checked: services.Stack, off: str) -> None:
    checked.api()
    checked.reconciler()
    one_each = {"PROMPTMILL_WORKER__FULL_SHARDS": "1", "PROMPTMILL_WORKER__MAX_SHARDS": "1"}
    for offset, zone in ((DAY, "Pacific/Kiritimati"), (-DAY, "America/Los_Angeles")):
        checked.worker(PYTHONPATH=off, CLOCK_OFFSET=str(offset), TZ=zone, **one_each)
    user = User(checked)
    user.sdk = user.sdk.with_options(max_retries=5)
    batch = user.submit(numbered(1_500, lambda number: f"SLEEP 0.7 {number}"))
    for least, jump in ((100, "1 hour"), (500, "-1 hour"), (900, "0")):
        user.wait_for(batch.id, lambda batch, least=least: done(batch) >= least)  # type: ignore[misc]
        set_clock(checked, jump)
    batch = user.wait(batch.id)
    assert batch.status == "completed"
    results = user.results(batch)
    assert set(results) == {f"row-{number}" for number in range(1_500)}
    # What their engines said of the time: each of them worked, and was a day off.
    created = [row["response"]["body"]["created"] - time.time() for row in results.values()]
    assert {round(each / DAY) for each in created} == {1, -1}
