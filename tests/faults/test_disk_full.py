"""F46, F47: a disk of Postgres is full, really. Calls that write get 503, and all goes on when there is room."""

import contextlib
import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import invariants
import psycopg
import pytest
import services
from clients import User, done, is_not_now
from conftest import migrate
from openai import InternalServerError
from payloads import gated, numbered

from api.stack import postgres
from api.stack.program import free_port

SIZE = "64m"
CHUNK = bytes(65_536)
ROWS = 600


@dataclass
class Disk:
    """A small disk with a database on it."""

    path: Path
    database: str

    @property
    def _ballast(self) -> Path:
        return self.path / "ballast"

    def fill(self) -> None:
        with pytest.raises(OSError, match="No space left"), self._ballast.open("wb", buffering=0) as file:
            while True:
                file.write(CHUNK)

    def free(self) -> None:
        self._ballast.unlink()


def mounted(path: Path) -> bool:
    """Make `path` a disk of its own, if we may."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE},mode=0755", "promptmill-test", str(path)]
    return os.geteuid() == 0 and subprocess.run(command, check=False, capture_output=True).returncode == 0


def cannot() -> NoReturn:
    """Skip, but not where nobody would see it: as root in CI, unless that is told to do without."""
    is_ci = os.environ.get("CI") == "true" and os.geteuid() == 0
    if is_ci and os.environ.get("PROMPTMILL_TEST_MOUNT") != "optional":
        pytest.fail("root cannot mount a small disk (CAP_SYS_ADMIN); PROMPTMILL_TEST_MOUNT=optional does without")
    pytest.skip("only root may mount a small disk")


@contextlib.contextmanager
def small_disk() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="promptmill-test-") as home:
        # Postgres runs as another user.
        Path(home).chmod(0o755)
        path = Path(home) / "disk"
        path.mkdir()
        if not mounted(path):
            cannot()
        try:
            yield path
        finally:
            subprocess.run(["umount", str(path)], check=True)


@pytest.fixture
def disk(servers: services.Servers, template: str) -> Iterator[Disk]:
    if services.DATABASE_URL_VARIABLE in os.environ:
        pytest.skip("Postgres may be on another machine")
    with small_disk() as path:
        yield from on_disk(servers, template, path)


def on_disk(servers: services.Servers, template: str, path: Path) -> Iterator[Disk]:
    tables = path / "tables"
    tables.mkdir(mode=0o700)
    os.chown(tables, postgres.run_as(), -1)
    name = "promptmill_test_small_disk"
    with psycopg.connect(servers.database_url, autocommit=True) as connection:
        connection.execute(f"CREATE TABLESPACE {name} LOCATION '{tables}'")
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template} TABLESPACE {name}")
        try:
            yield Disk(path, name)
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
            connection.execute(f"DROP TABLESPACE {name}")


@pytest.fixture
def stack(servers: services.Servers, disk: Disk, tmp_path: Path) -> Iterator[services.Stack]:
    # A shard for each row: there are always some to be claimed.
    settings = {
        **services.SHORT_LEASES,
        "PROMPTMILL_WORKER__ENGINE": "scripted",
        "PROMPTMILL_SHARDS__MAX_REQUESTS": "1",
    }
    made = services.Stack(tmp_path, servers.database(disk.database), servers.redis_url, settings)
    yield made
    made.stop()


def noise(number: int) -> str:
    """Return what Postgres cannot make small."""
    return random.Random(number).randbytes(2_000).hex()


def is_taken(user: User, data: bytes) -> bool:
    try:
        return bool(user.sdk.files.create(file=("a.jsonl", data), purpose="batch"))
    except InternalServerError as error:
        assert is_not_now(error)  # noqa: PT017  other errors are raised
        return False


def said(worker: services.Process, event: str) -> bool:
    return f'"{event}"' in worker.log.read_text()


def test_a_full_disk_stops_writing_until_there_is_room(stack: services.Stack, disk: Disk) -> None:
    stack.api()
    stack.reconciler()
    worker = stack.worker()
    user = User(stack)
    gate = stack.home / "gate"
    prompt = gated(gate, ROWS // 6)
    batch = user.submit(numbered(ROWS, lambda number: f"{prompt(number)} {noise(number)}"))
    user.wait_for(batch.id, lambda batch: done(batch) > 0)
    disk.fill()
    data = numbered(2_000, lambda number: f"{number} " + "x" * 2_000)
    # A table may have some room left.
    services.wait_until(lambda: not is_taken(user, data), "a file is refused")
    files = [each.id for each in user.sdk.files.list(purpose="batch")]
    gate.touch()
    services.wait_until(lambda: '"DiskFull"' in worker.log.read_text(), "the worker cannot write")
    # The first holds what it cannot write. Each claim of another takes some of the room that the tables have left.
    hungry = stack.worker(PROMPTMILL_WORKER__MAX_SHARDS=str(ROWS))
    services.wait_until(lambda: said(hungry, "claims_paused"), "claims pause")
    assert user.batch(batch.id).status == "in_progress"
    assert [each.id for each in user.sdk.files.list(purpose="batch")] == files, "what was refused is not there"
    disk.free()
    services.wait_until(lambda: is_taken(user, data), "files are taken again")
    services.wait_until(lambda: said(hungry, "claims_resumed"), "claims are made again")
    batch = user.wait(batch.id)
    assert batch.status == "completed"
    assert set(user.results(batch)) == {f"row-{number}" for number in range(ROWS)}
    engine = stack.engine()
    invariants.check(engine)
    engine.dispose()


@dataclass
class LogDisk:
    """A Postgres whose log (WAL) is on a small disk, and a stack on it."""

    stack: services.Stack
    server: services.Process
    disk: Disk


@pytest.fixture
def log_disk(servers: services.Servers, tmp_path: Path) -> Iterator[LogDisk]:
    with small_disk() as path, tempfile.TemporaryDirectory(prefix="promptmill-test-") as home:
        data, port = Path(home) / "postgres", free_port()
        postgres.initialise(data, services.PASSWORD)
        # With it the owner of the folder, who is not us.
        shutil.copytree(data / "pg_wal", path / "wal")
        subprocess.run(["chown", "-R", "--reference", str(data / "pg_wal"), str(path / "wal")], check=True)
        shutil.rmtree(data / "pg_wal")
        (data / "pg_wal").symlink_to(path / "wal")
        program = postgres.program(data, port, services.PASSWORD)
        server = services.Process.start(program, tmp_path / "postgres.log")
        url = postgres.url(port, services.PASSWORD, "postgres")
        migrate(url)
        settings = {**services.SHORT_LEASES, "PROMPTMILL_WORKER__ENGINE": "scripted"}
        made = LogDisk(services.Stack(tmp_path, url, servers.redis_url, settings), server, Disk(path, "postgres"))
        try:
            yield made
        finally:
            made.stack.stop()
            made.server.stop()


def test_a_full_disk_of_the_log_loses_nothing(log_disk: LogDisk) -> None:
    """Postgres itself stops: it cannot promise anything any more. Whatever runs it starts it again when there is room."""
    stack = log_disk.stack
    stack.api()
    stack.reconciler()
    stack.worker()
    user = User(stack)
    batch = user.submit(numbered(40, lambda number: f"text {number}"))
    log_disk.disk.fill()
    data = numbered(2_000, lambda number: f"{number} " + "x" * 2_000)
    taken = 0
    while is_taken(user, data):
        taken += 1
    services.wait_until(lambda: log_disk.server.popen.poll() is not None, "Postgres stops")
    log_disk.disk.free()
    log_disk.server = services.Process.start(log_disk.server.program, log_disk.server.log)
    services.wait_until(lambda: is_taken(user, data), "files are taken again")
    batch = user.wait(batch.id)
    assert batch.status == "completed"
    assert set(user.results(batch)) == {f"row-{number}" for number in range(40)}
    assert len(list(user.sdk.files.list(purpose="batch"))) >= 1 + taken + 1, "what was answered for is there"
    engine = stack.engine()
    invariants.check(engine)
    engine.dispose()
