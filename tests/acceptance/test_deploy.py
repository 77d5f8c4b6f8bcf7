"""docker-compose.yml without containers: each service's own command, variables, secrets and health check, and a batch."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import documented
import httpx2
import psycopg
import pytest
import services
from clients import TERMINAL
from composed import ROOT, Composed, environment_of, plain_environment, valkey_command, without_lz4
from openai import OpenAI
from payloads import parse

from api.stack import postgres, valkey
from api.stack.program import Program, answers, free_port

MODEL = "smollm2-135m-instruct"
ENDPOINT: Literal["/v1/chat/completions"] = "/v1/chat/completions"
LINE = '{"custom_id": "%s", "method": "POST", "url": "%s", "body": {"model": "%s", "max_tokens": 8, "messages": [{"role": "user", "content": "Say hello."}]}}\n'
METRICS = {
    "api": "PROMPTMILL_METRICS__API_PORT",
    "reconciler": "PROMPTMILL_METRICS__RECONCILER_PORT",
    "worker-cpu": "PROMPTMILL_METRICS__WORKER_PORT",
}
PORTS = ("PROMPTMILL_API__PORT", "PROMPTMILL_FLOWER__PORT", *METRICS.values())
LASTING = ("api", "reconciler", "flower", "worker-cpu")


@pytest.fixture(scope="module")
def composed() -> Iterator[Composed]:
    """Postgres and Valkey as the file has them, the secrets, the tables and the users."""
    # Not below pytest's own folder, which Postgres may not enter when we are root.
    with tempfile.TemporaryDirectory(prefix="promptmill-deploy-") as folder, contextlib.ExitStack() as end:
        home = Path(folder)
        ports = {variable: str(free_port()) for variable in PORTS}
        made = Composed(home, free_port(), free_port(), ports)
        made.run("make-secrets")
        made.rewrite_hosts()
        password = (made.secrets / "postgres_password").read_text().strip()
        postgres.initialise(home / "postgres", password)
        options = without_lz4(made.service("postgres")["command"])
        program = postgres.program(home / "postgres", made.postgres_port, password, options)
        end.enter_context(services.running(program, home / "postgres.log"))
        # As POSTGRES_DB has the container do.
        postgres.ensure_database(made.postgres_port, password)
        end.enter_context(services.running(valkey_program(made), home / "valkey.log"))
        made.run("migrate")
        made.run("users")
        yield made


def valkey_program(composed: Composed) -> Program:
    async def ready() -> bool:
        return await answers("127.0.0.1", composed.valkey_port)

    command = valkey_command(composed, valkey.server())
    return Program("valkey", command, ready, environment=plain_environment())


@pytest.fixture(scope="module")
def running(composed: Composed) -> Iterator[dict[str, services.Process]]:
    with ThreadPoolExecutor(len(LASTING)) as pool, contextlib.ExitStack() as end:
        started = dict(zip(LASTING, pool.map(composed.start, LASTING), strict=True))
        for process in started.values():
            end.callback(process.stop)
        yield started


def test_each_service_runs_a_batch_for_another_project_than_the_default(
    composed: Composed, running: dict[str, services.Process]
) -> None:
    key = composed.run("admin", "keys", "create", "--project", "translations").strip()
    data = "".join(LINE % (f"row-{number}", ENDPOINT, MODEL) for number in range(3)).encode()
    with OpenAI(base_url=f"http://127.0.0.1:{composed.more['PROMPTMILL_API__PORT']}/v1", api_key=key) as sdk:
        file = sdk.files.create(file=("requests.jsonl", data), purpose="batch")
        batch = sdk.batches.create(input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h")
        services.wait_until(lambda: sdk.batches.retrieve(batch.id).status in TERMINAL, "the batch ends", 120)
        batch = sdk.batches.retrieve(batch.id)
        assert batch.status == "completed" and batch.output_file_id, batch
        rows = parse(sdk.files.content(batch.output_file_id).content)
    assert [row["custom_id"] for row in rows] == ["row-0", "row-1", "row-2"]
    assert f"{composed.run('admin', 'projects', 'list')}".count("translations") == 1


def test_each_process_works_as_its_own_user_and_no_environment_holds_a_secret(
    composed: Composed, running: dict[str, services.Process]
) -> None:
    with psycopg.connect((composed.secrets / "owner_database_url").read_text().strip()) as connection:
        found = connection.execute("SELECT DISTINCT usename FROM pg_stat_activity WHERE usename LIKE '%login'")
        assert {row[0] for row in found} == {f"promptmill_{name}_login" for name in ("api", "worker", "reconciler")}
    passwords = {
        path.read_text().strip().rpartition("@")[0] or path.read_text().strip() for path in composed.secrets.iterdir()
    }
    for name in ("api", "reconciler", "worker-cpu"):
        environment = environment_of(running[name])
        assert "_FILE=" in environment
        assert [secret for secret in passwords if secret in environment] == [], name


def test_flower_asks_for_the_password_of_its_file(composed: Composed, running: dict[str, services.Process]) -> None:
    url = f"http://127.0.0.1:{composed.more['PROMPTMILL_FLOWER__PORT']}/api/workers"
    password = (composed.secrets / "flower_password").read_text().strip()
    assert httpx2.get(url).status_code == 401
    assert httpx2.get(url, auth=("promptmill", password)).status_code == 200


@pytest.mark.parametrize("name", METRICS)
def test_a_process_shows_its_figures_to_whom_has_the_token_of_its_file(
    composed: Composed, running: dict[str, services.Process], name: str
) -> None:
    url = f"http://127.0.0.1:{composed.more[METRICS[name]]}/metrics"
    token = (composed.secrets / "metrics_token").read_text().strip()
    assert httpx2.get(url).status_code == 401
    assert "promptmill_build_info" in httpx2.get(url, headers={"Authorization": f"Bearer {token}"}).text


def test_valkey_and_postgres_are_as_their_health_checks_expect(composed: Composed) -> None:
    assert composed.health("postgres") == 0
    # What `valkey-cli ping` prints; the program is not in the wheel.
    with socket.create_connection(("127.0.0.1", composed.valkey_port)) as connection:
        connection.sendall(b"PING\r\n")
        assert connection.recv(100).startswith(b"-NOAUTH")


def test_an_administrators_step_can_be_repeated_and_changes_no_secret(composed: Composed) -> None:
    before = {path.name: path.read_bytes() for path in composed.secrets.iterdir()}
    for name in ("make-secrets", "migrate", "users"):
        composed.run(name)
    assert {path.name: path.read_bytes() for path in composed.secrets.iterdir()} == before


def test_the_pages_backup_asks_for_no_password(composed: Composed) -> None:
    (backup,) = (block for block in documented.blocks("docs/deploy.md") if block.startswith("as_owner="))
    composed.shell("postgres", backup)
    assert (composed.home / "promptmill.dump").read_bytes().startswith(b"PGDMP")
    assert "promptmill_worker" in (composed.home / "roles.sql").read_text()


def test_the_gpu_workers_command_names_a_profile_that_fits(composed: Composed) -> None:
    shown = composed.run("worker-gpu", *composed.service("worker-gpu")["command"], "--dry-run", "--json")
    assert '"gemma-3-27b-it"' in shown


def test_a_health_check_fails_when_its_process_is_gone_and_each_one_drains(
    composed: Composed, running: dict[str, services.Process]
) -> None:
    """The last test of the file: it stops them."""
    for name, process in running.items():
        # uvicorn shuts down and then lets the signal end it.
        assert process.stop() == (-signal.SIGTERM if name == "api" else 0), (name, process.tail())
    for name in ("api", "flower"):
        assert composed.health(name) == 1
    for name in ("reconciler", "worker-cpu"):
        assert composed.health(name) == 0, "it was alive a moment ago"
        os.utime(composed.home / f"{name}.alive", (0, 0))
        assert composed.health(name) == 1


@pytest.mark.skipif(
    not shutil.which("docker")
    or subprocess.run(["docker", "compose", "version"], check=False, capture_output=True).returncode != 0,
    reason="no docker with the compose plugin",
)
@pytest.mark.parametrize("override", [None, "deploy/share.yml", "deploy/gpu-host.yml"])
def test_docker_compose_takes_the_files(override: str | None) -> None:
    files = ["docker-compose.yml", *([override] if override else [])]
    named = [part for name in files for part in ("--file", name)]
    command = ["docker", "compose", *named, "--profile", "gpu", "--profile", "cpu", "config", "--quiet"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**plain_environment(), "SHARE_ADDRESS": "127.0.0.1"},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
