"""`promptmill up` and `promptmill demo`, as a user runs them: real processes, real model, nothing left behind."""

import base64
import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
import services
from conftest import ROOT
from openai import AuthenticationError, OpenAI
from payloads import numbered, parse

from api.stack import up
from api.stack.program import free_port, promptmill


@pytest.fixture
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="promptmill-test-") as path:
        yield Path(path) / "data dir"


def environment(home: Path, **more: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PROMPTMILL_WEBHOOKS__")}
    return {
        **inherited,
        "PROMPTMILL_DATA_DIR": str(home),
        "PROMPTMILL_API__PORT": str(free_port()),
        "PROMPTMILL_FLOWER__PORT": str(free_port()),
        **more,
    }


class Run:
    """A command of ours and everything that it starts."""

    def __init__(self, *arguments: str, env: dict[str, str]) -> None:
        handle, path = tempfile.mkstemp()
        self._out = Path(path)
        self.popen = subprocess.Popen([services.PROMPTMILL, *arguments], env=env, stdout=handle, stderr=handle)
        os.close(handle)

    def output(self) -> str:
        return self._out.read_text()

    def family(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self.popen.pid).children(recursive=True)
        return []

    def stop(self, number: signal.Signals) -> int:
        self.popen.send_signal(number)
        return self.popen.wait(90)


@contextlib.contextmanager
def running(home: Path, **more: str) -> Iterator[tuple[Run, up.Address]]:
    run = Run("up", env=environment(home, PROMPTMILL_WORKER__ENGINE="scripted", **more))
    try:
        services.wait_until(lambda: up.running_stack(home) or run.popen.poll() is not None, "the stack is up")
        address = up.running_stack(home)
        assert address, run.output()
        yield run, address
    finally:
        if run.popen.poll() is None:
            run.stop(signal.SIGTERM)


def gone(family: Sequence[psutil.Process]) -> bool:
    return not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in family)


def get(url: str, user: str = "", password: str = "") -> tuple[int, Any]:
    login = base64.b64encode(f"{user}:{password}".encode()).decode()
    request = urllib.request.Request(url, headers={"authorization": f"Basic {login}"} if user else {})
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        error.close()
        return error.code, None


@pytest.mark.timeout(600)
def test_the_demo_runs_twice_and_leaves_nothing_behind(home: Path, tmp_path: Path) -> None:
    for turn in range(2):
        started = time.monotonic()
        run = Run("demo", "--out-dir", str(tmp_path), env=environment(home))
        services.wait_until(lambda run=run: len(run.family()) > 6 or run.popen.poll() is not None, "it starts")  # type: ignore[misc]
        family = run.family()
        assert run.popen.wait(300) == 0, run.output()
        print(f"\ndemo, turn {turn + 1}: {time.monotonic() - started:.0f} s")
        services.wait_until(lambda family=family: gone(family), "everything is stopped", 10)  # type: ignore[misc]
    check_secrets(home, json.loads((home / "credentials.json").read_text()))
    for name in ("reviews", "translate"):
        asked = parse((ROOT / "examples" / f"{name}.jsonl").read_bytes())
        answered = parse((tmp_path / name / "output.jsonl").read_bytes())
        assert len(asked) >= 60
        assert [row["custom_id"] for row in answered] == [row["custom_id"] for row in asked]
        assert f"{name}: output in" in run.output()
    for row in parse((tmp_path / "reviews" / "output.jsonl").read_bytes()):
        choice = row["response"]["body"]["choices"][0]
        if choice["finish_reason"] == "stop":
            assert json.loads(choice["message"]["content"])["sentiment"] in ("positive", "neutral", "negative")


def test_up_shows_the_key_and_the_queue_and_stops_in_order(home: Path) -> None:
    with running(home) as (run, address):
        client = OpenAI(base_url=address.base_url, api_key=address.api_key, max_retries=0)
        file = client.files.create(file=("a.jsonl", numbered(300)), purpose="batch")
        batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
        services.wait_until(lambda: client.batches.retrieve(batch.id).status == "completed", "it runs")
        for shown in (address.base_url, address.api_key, address.flower_url, address.flower_password):
            assert shown in run.output()
        check_flower(address, batch.id)
        assert up.address_file(home).stat().st_mode & 0o077 == 0
        client.webhooks.create(url="https://receiver.example.com/", name="", event_types=["batch.completed"])
        family = run.family()
        check_processes(home, address, family)
        assert run.stop(signal.SIGINT) == 0, run.output()
        assert gone(family)
    assert up.running_stack(home) is None
    check_secrets(home, {"api_key": address.api_key, "flower": address.flower_password})
    with running(home) as (_, again):
        assert again.api_key == address.api_key
        client = OpenAI(base_url=again.base_url, api_key=again.api_key)
        assert client.batches.retrieve(batch.id).status == "completed"


def check_processes(home: Path, address: up.Address, family: Sequence[psutil.Process]) -> None:
    """No secret is among the arguments, which every user of the machine can read; each process has its own user."""
    secrets = [*json.loads((home / "credentials.json").read_text()).values(), address.database_url]
    shown = " ".join(word for process in family for word in process.cmdline())
    assert "promptmill" in shown or "api" in shown
    assert not [secret for secret in secrets if secret in shown]
    with psycopg.connect(address.database_url) as connection:
        rows = connection.execute("SELECT DISTINCT usename FROM pg_stat_activity WHERE application_name = 'promptmill'")
        assert {row[0] for row in rows} == {f"promptmill_{name}_login" for name in ("api", "worker", "reconciler")}


def check_flower(address: up.Address, batch_id: str) -> None:
    """Flower is closed to strangers, and shows each shard with its batch, rows and state."""
    assert get(address.flower_url + "/tasks")[0] == 401
    login = (address.flower_user, address.flower_password)

    def tasks() -> list[dict[str, Any]]:
        status, body = get(address.flower_url + "/api/tasks", *login)
        assert status == 200
        return [task for task in json.loads(body).values() if task["state"] == "SUCCESS"]

    services.wait_until(lambda: len(tasks()) == 2, "Flower has seen both shards")
    for task in tasks():
        assert task["name"] == "shards.run"
        assert batch_id in task["args"]
        assert "rows" in task["args"]
        assert "done" in task["result"]


def check_secrets(home: Path, secrets: dict[str, str]) -> None:
    """Secrets are in one file that only its owner may read (Valkey's own in its configuration), and in no log."""
    assert home.stat().st_mode & 0o077 == 0
    for path in home.rglob("*"):
        if path.is_file() and "postgres" not in path.parts and path.name not in ("credentials.json", "valkey.conf"):
            content = path.read_bytes()
            assert not [name for name, secret in secrets.items() if secret.encode() in content], path
    for name in ("credentials.json", "webhooks.keys"):
        assert (home / name).stat().st_mode & 0o077 == 0
    assert (home / "valkey" / "valkey.conf").stat().st_mode & 0o077 == 0


def test_ctrl_c_stops_the_demo_and_everything_it_started(home: Path) -> None:
    run = Run("demo", env=environment(home))
    services.wait_until(lambda: up.running_stack(home), "the stack is up")
    family = run.family()
    assert len(family) > 6
    assert run.stop(signal.SIGINT) == 130, run.output()
    services.wait_until(lambda: gone(family), "everything is stopped", 10)


def test_keys_are_made_listed_and_revoked(home: Path) -> None:
    """F102, F108."""
    with running(home) as (_, address):

        def keys(*arguments: str) -> str:
            command = promptmill("keys", *arguments)
            env = {**os.environ, "PROMPTMILL_DATA_DIR": str(home), "COLUMNS": "200"}
            return subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout

        key = keys("create", "--project", "mine", "--name", "[/x]").strip()
        client = OpenAI(base_url=address.base_url, api_key=key, max_retries=0)
        assert client.files.list().data == []
        listed = keys("list")
        assert key.split("_")[1] in listed
        assert "[/x]" in listed
        assert key.split("_")[2] not in listed
        assert "Revoked" in keys("revoke", key)
        with pytest.raises(AuthenticationError):
            client.files.list()


def test_a_database_that_is_away_is_named(home: Path) -> None:
    port = free_port()
    env = environment(home, PROMPTMILL_DATABASE_URL=f"postgresql://127.0.0.1:{port}/x")
    for arguments in (("keys", "list"), ("migrate",)):
        run = Run(*arguments, env=env)
        assert run.popen.wait(60) == 1
        assert str(port) in run.output()
        assert "Traceback" not in run.output()


def test_flower_does_not_start_without_a_password() -> None:
    run = Run("flower", env=dict(os.environ))
    assert run.popen.wait(60) == 1
    assert "PROMPTMILL_FLOWER__PASSWORD" in run.output()


def test_nothing_outlives_a_killed_supervisor(home: Path) -> None:
    with running(home) as (run, _):
        family = run.family()
        assert {"postgres", "valkey-server"} <= {process.name() for process in family}
        assert run.stop(signal.SIGKILL) == -signal.SIGKILL
        services.wait_until(lambda: gone(family), f"orphans: {family}", 20)
    with running(home) as (_, address):
        assert OpenAI(base_url=address.base_url, api_key=address.api_key, max_retries=0).models.list().data


def test_a_worker_that_dies_is_started_again(home: Path) -> None:
    with running(home) as (run, address):
        worker = next(process for process in run.family() if process.cmdline()[-1:] == ["worker"])
        worker.kill()
        services.wait_until(lambda: "worker ended with status" in run.output(), "it is noticed")
        client = OpenAI(base_url=address.base_url, api_key=address.api_key)
        file = client.files.create(file=("a.jsonl", numbered(3)), purpose="batch")
        batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
        services.wait_until(lambda: client.batches.retrieve(batch.id).status == "completed", "it runs")


def test_a_port_that_is_taken_is_named(home: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        run = Run("up", env=environment(home, PROMPTMILL_API__PORT=str(port)))
        assert run.popen.wait(60) == 1
    assert f"Port {port} on 127.0.0.1 is taken" in run.output()
    assert "PROMPTMILL_API__PORT" in run.output()


def test_a_data_directory_is_for_one_stack(home: Path) -> None:
    with running(home):
        run = Run("up", env=environment(home))
        assert run.popen.wait(60) == 1
        assert "Another `promptmill up` uses" in run.output()


def test_a_program_that_does_not_start_stops_everything(home: Path) -> None:
    run = Run("up", env=environment(home, PROMPTMILL_WORKER__LLAMACPP__MODEL_PATH="/no/such/model.gguf"))
    family: list[psutil.Process] = []

    def ended() -> bool:
        family.extend(run.family())
        return run.popen.poll() is not None

    services.wait_until(ended, "it gives up")
    assert run.popen.returncode == 1
    assert "/no/such/model.gguf" in run.output()
    assert "worker.log" in run.output()
    assert gone(family)


def test_an_unknown_setting_stops_every_command() -> None:
    run = Run("up", env={**os.environ, "PROMPTMILL_WORKER__ENGIN": "x"})
    assert run.popen.wait(60) == 1
    assert "PROMPTMILL_WORKER__ENGIN" in run.output()
