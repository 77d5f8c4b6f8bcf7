"""`promptmill secrets`, `users` and `healthy` where something is wrong; acceptance/test_deploy.py has where all is well."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from api.healthy import Process, is_healthy
from api.stack import secret_files
from api.stack.program import free_port
from jobs import alive
from jobs.errors import ConfigurationError, Unavailable
from jobs.settings import Api, Flower, Settings


def test_a_folder_that_others_may_enter_gets_no_secrets(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with pytest.raises(ConfigurationError, match="can be entered by others"):
        secret_files.ensure(tmp_path, "postgres", "valkey")
    assert list(tmp_path.iterdir()) == []


def test_a_secret_that_is_deleted_is_made_anew_and_the_others_stay(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    made = secret_files.ensure(folder, "postgres", "valkey")
    before = {name: (folder / name).read_text() for name in made}
    (folder / "api_database_url").unlink()
    assert secret_files.ensure(folder, "postgres", "valkey") == ["api_database_url"]
    after = {name: (folder / name).read_text() for name in made}
    assert {name for name in made if after[name] != before[name]} == {"api_database_url"}


@pytest.mark.parametrize(
    "content", ["redis://a:b@c/0", "postgresql://promptmill:pw@h/d", "postgresql://promptmill_api_login@h/d"]
)
def test_only_a_process_with_a_password_is_let_in(tmp_path: Path, content: str) -> None:
    (tmp_path / "url").write_text(content)
    with pytest.raises(ConfigurationError, match="promptmill_api_login, promptmill_worker_login"):
        secret_files.let_processes_in("postgresql://nobody@127.0.0.1:1/none", [tmp_path / "url"])


def test_a_postgres_that_is_away_is_named_as_the_reason(tmp_path: Path) -> None:
    (tmp_path / "url").write_text("postgresql://promptmill_api_login:pw@h/d")
    with pytest.raises(Unavailable, match="lets no processes in"):
        secret_files.let_processes_in(f"postgresql://nobody@127.0.0.1:{free_port()}/none", [tmp_path / "url"])


@pytest.mark.parametrize("process", [Process.api, Process.flower])
def test_who_does_not_answer_is_not_healthy(process: Process) -> None:
    nowhere = Settings(api=Api(host="0.0.0.0", port=free_port()), flower=Flower(port=free_port()))
    assert not is_healthy(nowhere, process)


@pytest.mark.parametrize("process", [Process.worker, Process.reconciler])
def test_who_has_not_said_lately_that_it_goes_on_is_not_healthy(process: Process, tmp_path: Path) -> None:
    path = tmp_path / "alive"
    settings = Settings(alive_file=path)
    assert not is_healthy(settings, process)
    alive.note(path)
    assert is_healthy(settings, process)
    os.utime(path, (0, 0))
    assert not is_healthy(settings, process)


def test_without_a_file_nobody_can_tell() -> None:
    with pytest.raises(ConfigurationError, match="PROMPTMILL_ALIVE_FILE"):
        is_healthy(Settings(), Process.worker)


def test_a_disk_that_takes_nothing_stops_nobody(tmp_path: Path) -> None:
    alive.note(tmp_path / "no" / "such" / "folder")
    alive.note(None)


def test_the_commands_say_in_one_line_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "url").write_text("postgresql://promptmill_api_login:pw@h/d")
    nowhere = {"PROMPTMILL_DATABASE_URL": f"postgresql://nobody@127.0.0.1:{free_port()}/none"}
    for arguments in (["users", str(tmp_path / "url")], ["healthy", "worker"]):
        done = subprocess.run(
            [sys.executable, "-m", "api", *arguments],
            check=False,
            env={**os.environ, **nowhere},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
        assert "pw@" not in done.stderr
