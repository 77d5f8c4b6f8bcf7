"""The first three commands of docs/quickstart.md as a new user types them: a clone, the whole stack, a translated table."""

import contextlib
import csv
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import documented
import pytest
import services
from conftest import ROOT

from api.stack.program import free_port

INSTALL_SECONDS = 240


@contextlib.contextmanager
def terminal(commands: str, folder: Path, env: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run commands that stay, until the end of the block: then Ctrl-C."""
    with log.open("wb") as out:
        shell = subprocess.Popen(
            ["bash", "-ec", commands], cwd=folder, env=env, stdout=out, stderr=out, start_new_session=True
        )
    try:
        yield shell
    finally:
        os.killpg(shell.pid, signal.SIGINT)
        try:
            shell.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(shell.pid, signal.SIGKILL)
            shell.wait()


def has_ended(shell: subprocess.Popen[bytes]) -> bool:
    return shell.poll() is not None


def is_repository() -> bool:
    asked = subprocess.run(["git", "rev-parse", "--verify", "HEAD"], check=False, cwd=ROOT, capture_output=True)
    return asked.returncode == 0


@pytest.mark.skipif(not is_repository(), reason="there is nothing to clone")
@pytest.mark.timeout(INSTALL_SECONDS + 240)
def test_three_commands_lead_from_nothing_to_a_translated_table(tmp_path: Path) -> None:
    start, translate = documented.blocks(documented.QUICKSTART)[:2]
    bare = {name: value for name, value in os.environ.items() if not name.startswith(("PROMPTMILL_", "OPENAI_"))}
    # Other tests, and other stacks of this machine, have the usual ports.
    env = {**bare, "PROMPTMILL_API__PORT": str(free_port()), "PROMPTMILL_FLOWER__PORT": str(free_port())}
    log, home = tmp_path / "up.log", tmp_path / "promptmill"
    with terminal(start.replace("REPOSITORY", str(ROOT)), tmp_path, env, log) as up:
        services.wait_until(
            lambda: b"Promptmill is ready" in log.read_bytes() or has_ended(up), "the stack", INSTALL_SECONDS
        )
        assert not has_ended(up), log.read_text()
        ran = subprocess.run(
            ["bash", "-c", translate], check=False, cwd=home, env=env, capture_output=True, text=True, timeout=150
        )
    # 3: a row that the small model had nothing to say to is marked, and the table is there all the same.
    assert ran.returncode in (0, 3), (ran.stdout, ran.stderr)
    with (home / "translated.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == 6
    assert all(row["text_de"] or row["error"] for row in table)
    assert "Everything is stopped." in log.read_text()
