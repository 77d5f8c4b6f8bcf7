"""F98, F100: processes of the previous version and of this one work on the same batches, on the new tables.

`tests/previous/code.tar.xz` is the code of the previous version, whole: its processes are started from it, beside those
of this one. A recording of its statements would show less, and history is not there in every clone.
`make previous` packs the code of a commit; it is run once for each release (docs/operations.md, "Upgrades").
"""

import os
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path
from typing import Any

import pytest
import services
from clients import User, done
from payloads import numbered
from pydantic import SecretStr
from sqlalchemy import text

from api.stack.program import free_port
from jobs.dispatch import RUN_SHARD, make_celery, queue_for
from jobs.settings import Settings

CODE = Path(__file__).parent.parent / "previous" / "code.tar.xz"
# Few shards at a time, so that both workers get some.
SHARING = {"PROMPTMILL_WORKER__FULL_SHARDS": "2", "PROMPTMILL_WORKER__MAX_SHARDS": "2"}


def _install(folder: Path) -> None:
    """Its own list of commands, or it would be given those of this version, and their modules."""
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    commands, version = project["entry-points"]["promptmill.commands"], project["version"]
    installed = folder / f"promptmill-{version}.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text(f"Metadata-Version: 2.1\nName: promptmill\nVersion: {version}\n")
    lines = [f"{name} = {function}" for name, function in commands.items()]
    (installed / "entry_points.txt").write_text("\n".join(["[promptmill.commands]", *lines, ""]))


@pytest.fixture(scope="module")
def previous(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which `promptmill` is the previous version."""
    folder = tmp_path_factory.mktemp("previous")
    with tarfile.open(CODE) as archive:
        archive.extractall(folder, filter="data")
    _install(folder)
    # Not the folder that the tests are run in, where this version is.
    environment = {"PYTHONPATH": str(folder), "PYTHONSAFEPATH": "1"}
    for package in ("api", "jobs", "workers"):
        where = [sys.executable, "-c", f"import {package}; print({package}.__file__)"]
        found = subprocess.run(where, env={**os.environ, **environment}, capture_output=True, text=True, check=True)
        assert Path(found.stdout.strip()).is_relative_to(folder), "it is the previous version that will run"
    # A setting that it does not know, and would not start with.
    return {**environment, services.KEY_FILE_VARIABLE: services.UNSET}


def query(stack: services.Stack, statement: str) -> list[Any]:
    engine = stack.engine()
    with engine.connect() as connection:
        rows = list(connection.execute(text(statement)))
    engine.dispose()
    return rows


def test_old_and_new_share_the_work_and_take_over_from_each_other(
    checked: services.Stack, previous: dict[str, str]
) -> None:
    checked.api()
    new_port, old_port = checked.port, free_port()
    ready = "Uvicorn running on"
    checked.start("serve", wait_for=ready, PROMPTMILL_API__PORT=str(old_port), **previous)
    checked.start("reconciler", wait_for="reconciler_ready", **previous)
    checked.reconciler()
    old = checked.worker(**previous, **SHARING)
    new = checked.worker(**SHARING)
    key = checked.key()
    users = []
    for port in (old_port, new_port):
        checked.port = port
        users.append(User(checked, key))
    submitted = [user.submit(numbered(1_500, lambda number: f"SLEEP 0.5 {number}")) for user in users]
    sharing = "SELECT DISTINCT worker_id FROM attempts"
    services.wait_until(lambda: len(query(checked, sharing)) == 2, "both versions have claimed")
    services.wait_until(lambda: all(done(users[0].batch(each.id)) for each in submitted), "both batches run")
    new.kill()
    old.stop()
    checked.worker(**previous)
    checked.worker()
    for batch in submitted:
        # Each is read through the other version's API.
        ended = [user.wait(batch.id) for user in users]
        assert [each.status for each in ended] == ["completed", "completed"]
        assert users[0].results(ended[0]) == users[1].results(ended[1])
        assert set(users[0].results(ended[0])) == {f"row-{number}" for number in range(1_500)}


def test_a_hint_of_a_version_to_come_does_nothing_and_the_shard_is_run_all_the_same(checked: services.Stack) -> None:
    checked.api()
    worker = checked.worker()
    celery = make_celery(Settings(redis_url=SecretStr(checked.redis_url)))
    for arguments, options in ((["shard_1", 2], {}), (["shard_1"], {"version": 2})):
        celery.send_task(RUN_SHARD, args=arguments, kwargs=options, queue=queue_for("scripted"))  # type: ignore[arg-type]
    celery.close()
    services.wait_until(lambda: worker.log.read_text().count("hint_refused") == 2, "they have come")
    user = User(checked)
    assert user.wait(user.submit(numbered(3)).id).status == "completed"
    assert worker.stop() == 0, worker.tail()
