"""F51: an older state of Postgres is restored elsewhere, by the commands of docs/operations.md. What it knows goes on."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import invariants
import pytest
import services
from clients import User, done
from conftest import ROOT
from openai import NotFoundError
from payloads import gated, numbered

from api.stack import postgres
from api.stack.program import free_port
from jobs import db, keys, webhooks
from jobs.settings import Webhooks

ROWS = 600


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[str]:
    """A Postgres that has seen nothing yet; yields its URL."""
    with tempfile.TemporaryDirectory(prefix="promptmill-test-") as home:
        port = free_port()
        postgres.initialise(Path(home) / "postgres", services.PASSWORD)
        program = postgres.program(Path(home) / "postgres", port, services.PASSWORD, {"fsync": "off"})
        with services.running(program, tmp_path / "elsewhere.log"):
            yield postgres.url(port, services.PASSWORD, "restored")


def run_commands(name: str, url: str, folder: Path) -> None:
    """Run the commands below the mark `name` of the page, on the database at `url`."""
    page = (ROOT / "docs" / "operations.md").read_text()
    (commands,) = re.findall(rf"<!-- {name} -->\n```sh\n(.*?)```", page, re.DOTALL)
    parts = urlsplit(url)
    programs = (str(postgres.programs_dir()), str(Path(sys.executable).parent), os.environ["PATH"])
    environment = {
        **os.environ,
        "PATH": ":".join(programs),
        "PGHOST": str(parts.hostname),
        "PGPORT": str(parts.port),
        "PGUSER": str(parts.username),
        "PGPASSWORD": str(parts.password),
        "PGDATABASE": parts.path[1:],
        "PROMPTMILL_DATABASE_URL": url,
    }
    ran = subprocess.run(["bash", "-euc", commands], cwd=folder, env=environment, check=False, capture_output=True)
    assert ran.returncode == 0, ran.stderr.decode()


def signing_secret(stack: services.Stack, key: str, endpoint_id: str) -> str:
    engine = stack.engine()
    with db.transaction(engine) as connection:
        project_id = keys.authenticate(connection, key).project_id
        settings = Webhooks(key_file=services.KEY_FILE)
        found = webhooks.find_with_secret(connection, project_id, endpoint_id, settings)
    engine.dispose()
    return found.signing_secret


def test_a_batch_goes_on_where_the_backup_has_it(checked: services.Stack, elsewhere: str, tmp_path: Path) -> None:
    checked.leaves_open = True
    checked.api()
    checked.reconciler()
    worker = checked.worker(PROMPTMILL_WORKER__SCRIPTED_CAPACITY="16", PROMPTMILL_WORKER__WAITING_REQUESTS="1")
    key = checked.key()
    user = User(checked, key)
    hook: Any = user.sdk.webhooks.create(url="https://receiver.example.com/", name="", event_types=["batch.expired"])
    gate = checked.home / "gate"
    batch = user.submit(numbered(ROWS, gated(gate, 100)))
    user.wait_for(batch.id, lambda batch: done(batch) > 0)
    run_commands("backup", checked.database_url, tmp_path)
    worker.kill()
    # Created after the backup: its hint is in Redis, and nobody will know it.
    lost = user.submit(numbered(10))
    services.wait_until(lambda: checked.redis().llen("promptmill:shards.scripted"), "a hint is there")
    user.sdk.close()
    checked.stop()

    run_commands("restore", elsewhere, tmp_path)
    restored = services.Stack(tmp_path / "restored", elsewhere, checked.redis_url, checked.settings)
    restored.home.mkdir()
    try:
        restored.api()
        user = User(restored, key)
        before = user.batch(batch.id)
        assert (before.status, 0 < done(before) < ROWS) == ("in_progress", True)
        gate.touch()
        restored.reconciler()
        worker = restored.worker()
        batch = user.wait(batch.id)
        assert batch.status == "completed"
        assert set(user.results(batch)) == {f"row-{number}" for number in range(ROWS)}
        with pytest.raises(NotFoundError):
            user.batch(lost.id)
        assert signing_secret(restored, key, hook.id) == hook.signing_secret
        invariants.check_stack(restored)
        user.sdk.close()
        assert worker.stop() == 0, worker.tail()
        assert "shard_failed" not in worker.log.read_text()
    finally:
        restored.stop()
