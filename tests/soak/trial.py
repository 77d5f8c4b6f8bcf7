"""One soak from begin to end: load and faults, then quiet, then everything is looked at."""

import hashlib
import random
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import invariants
import services
from clients import TERMINAL
from conftest import ROOT
from openai import OpenAI
from soak import reruns, world
from soak.antagonist import Antagonist
from soak.ledger import Ledger
from soak.load import PROGRAMS_A_TENANT, Program, Work
from soak.report import Report
from soak.reruns import Rerun
from soak.world import World
from sqlalchemy import Engine, text

from jobs import db

TENANTS = "ada", "bea", "cyd"
# I8: when faults have stopped, everything has ended within this time: a poison that was just sent is run eight times,
# each time until a lease has ended and a worker has started.
SETTLE_SECONDS = 240
UNSWEPT = text("SELECT count(*) FROM files WHERE deleted_at IS NOT NULL AND swept_at IS NULL")
ENDS = text("SELECT coalesce(end_reason, 'open') AS reason, count(*) AS times FROM attempts GROUP BY 1 ORDER BY 1")


def run(seed: int, seconds: float, home: Path) -> Report:
    """Return what came of a soak in which faults are injected for so long. Logs are below `home`."""
    with world.running(home) as made, _engine(made) as engine:
        ledger = Ledger()
        keys = {tenant: made.stack.key(tenant) for tenant in TENANTS}
        antagonist = Antagonist(made, random.Random(seed))
        began = time.monotonic()
        with _load(Work(made.base_urls, engine, ledger, home, threading.Event(), threading.Event()), keys, seed):
            antagonist.run(seconds)
            stopped = time.monotonic()
        ended = time.monotonic()
        _look_at_everything(made, engine, ledger, keys)
        return Report(
            seed=seed,
            seconds=stopped - began,
            settled_seconds=ended - stopped,
            ledger=ledger,
            faults=antagonist.faults,
            commit=_commit(),
            reruns=_reruns(made, engine),
            restarts=Counter(f"{name} {end}" for name, kept in made.kept.items() for each in kept for end in each.ends),
            attempts=_attempts(engine),
        )


@contextmanager
def _engine(made: World) -> Iterator[Engine]:
    engine = db.make_engine(made.stack.database_url, connections=10)
    try:
        yield engine
    finally:
        engine.dispose()


@contextmanager
def _load(work: Work, keys: dict[str, str], seed: int) -> Iterator[None]:
    """Let all programs work during the block; afterwards wait until what they have begun has ended."""
    programs = [
        Program(work, tenant, key, f"{seed} {tenant} {number}")
        for tenant, key in keys.items()
        for number in range(PROGRAMS_A_TENANT)
    ]
    for program in programs:
        program.thread.start()
    try:
        yield
        work.is_over.set()
        _join(programs, SETTLE_SECONDS)
    finally:
        work.is_over.set()
        work.is_hopeless.set()
        _join(programs, 60)
        for program in programs:
            program.close()
    if left := dict(work.ledger.open):
        work.ledger.accuse("wrong", f"not ended {SETTLE_SECONDS} s after the last fault: {left}")


def _join(programs: list[Program], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    for program in programs:
        program.thread.join(max(0, deadline - time.monotonic()))


def _look_at_everything(made: World, engine: Engine, ledger: Ledger, keys: dict[str, str]) -> None:
    with engine.connect() as connection:
        services.wait_until(lambda: connection.execute(UNSWEPT).scalar_one() == 0, "deleted files are swept", 120)
    for tenant, key in keys.items():
        with OpenAI(base_url=made.base_urls[0], api_key=key) as sdk:
            _look_at_lists(sdk, ledger, tenant)
            _read_again(sdk, ledger, tenant)
    try:
        invariants.check(engine, acknowledged=ledger.acknowledged)
    except AssertionError as error:
        ledger.accuse("wrong", f"{error}")


def _look_at_lists(sdk: OpenAI, ledger: Ledger, tenant: str) -> None:
    """A batch for each that was created, and no more, all ended; a file for each that was uploaded and not deleted."""
    there = {batch.id: batch.status for batch in sdk.batches.list(limit=100)}
    created = ledger.batches.get(tenant, set())
    for batch_id in created - there.keys():
        ledger.accuse("lost", f"{batch_id} of {tenant}")
    for batch_id in there.keys() - created:
        ledger.accuse("doubled", f"{batch_id} of {tenant} was not asked for")
    for batch_id, status in there.items():
        if status not in TERMINAL:
            ledger.accuse("wrong", f"{batch_id} of {tenant} is {status}")
    for file in sdk.files.list(purpose="batch", limit=10_000):
        if file.id not in ledger.acknowledged:
            ledger.accuse("doubled", f"{file.id} of {tenant} was not asked for, or was deleted")


def _read_again(sdk: OpenAI, ledger: Ledger, tenant: str) -> None:
    """I3: what was seen stays as it is."""
    for file_id, (owner, digest) in ledger.downloaded.items():
        if owner == tenant and hashlib.sha256(sdk.files.content(file_id).content).digest() != digest:
            ledger.accuse("wrong", f"I3: {file_id} of {tenant} has changed since it was read")


def _reruns(made: World, engine: Engine) -> list[Rerun]:
    with engine.connect() as connection:
        return reruns.find(connection, [death for kept in made.kept["worker"] for death in kept.deaths])


def _commit() -> str | None:
    """Return the commit that is checked out, and whether files were changed since; None where nobody knows."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _attempts(engine: Engine) -> Counter[str]:
    with engine.connect() as connection:
        return Counter({row.reason: row.times for row in connection.execute(ENDS)})
