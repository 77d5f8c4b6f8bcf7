"""Reads docker-compose.yml and Dockerfile, and runs a service as its container would, without containers.

Only host names, ports and paths are rewritten: commands, variables and health checks are the file's own, word for word.
"""

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import services
import yaml

from api.stack import postgres
from api.stack.program import Program

ROOT = Path(__file__).resolve().parent.parent
DURATION = re.compile(r"(?:(\d+)m)?(?:(\d+)s)?")


def load(name: str = "docker-compose.yml") -> dict[str, Any]:
    """Return the file, with the default of each variable in its place."""
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", (ROOT / name).read_text())
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def seconds(duration: str) -> int:
    found = DURATION.fullmatch(duration)
    assert found and duration, duration
    return 60 * int(found[1] or 0) + int(found[2] or 0)


def stages() -> dict[str, str]:
    """Map each stage of the Dockerfile to its lines, joined."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    return {found[1]: found[2] for found in re.finditer(r"^FROM \S+ AS (\S+)\n(.*?)(?=^FROM|\Z)", text, re.M | re.S)}


@dataclass
class Composed:
    """The services of docker-compose.yml on ports of loopback."""

    home: Path
    postgres_port: int
    valkey_port: int
    more: Mapping[str, str]
    """Variables for all: ports."""
    file: dict[str, Any] = field(default_factory=load)

    def service(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.file["services"][name]
        return found

    @property
    def secrets(self) -> Path:
        return self.home / "secrets"

    def rewrite_hosts(self) -> None:
        """Have the URLs among the secrets name the servers of the test."""
        for path in self.secrets.iterdir():
            text = path.read_text().replace("@postgres:5432/", f"@127.0.0.1:{self.postgres_port}/")
            path.write_text(text.replace("@valkey:6379/", f"@127.0.0.1:{self.valkey_port}/"))

    def _here(self, name: str, text: str) -> str:
        """Return the text with paths of this machine: each service sees the secrets that it is given, and no others."""
        for secret in self.service(name).get("secrets", []):
            text = text.replace(f"/run/secrets/{secret}", str(self.secrets / secret))
        text = re.sub("^/secrets", str(self.secrets), text)
        return text.replace("/tmp/alive", str(self.home / f"{name}.alive"))

    def environment(self, name: str) -> dict[str, str]:
        own = {key: self._here(name, str(value)) for key, value in self.service(name).get("environment", {}).items()}
        path = f"{Path(sys.executable).parent}:{postgres.programs_dir()}:/usr/bin:/bin"
        return {"PATH": path, "HOME": str(self.home), "PGPORT": str(self.postgres_port), **own, **self.more}

    def argv(self, name: str, *instead: str) -> list[str]:
        """Return its command line, or another one for the same image, as `docker compose run NAME` has it."""
        arguments = instead or self.service(name)["command"]
        return ["promptmill", *(self._here(name, argument) for argument in arguments)]

    def run(self, name: str, *instead: str) -> str:
        """Run a service that ends by itself; return what it printed."""
        done = subprocess.run(
            self.argv(name, *instead),
            env=self.environment(name),
            cwd=self.home,
            check=False,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def health(self, name: str) -> int:
        """Run its health check; return the exit status."""
        kind, *words = self.service(name)["healthcheck"]["test"]
        argv = words if kind == "CMD" else ["/bin/sh", "-c", *words]
        return subprocess.run(
            argv, env=self.environment(name), cwd=self.home, check=False, capture_output=True
        ).returncode

    def shell(self, name: str, script: str) -> None:
        """Run a script, where `docker compose exec -T NAME` runs commands in this service as on this machine."""
        inside = f'docker() {{ test "$1 $2 $3 $4" = \'compose exec -T {name}\' && shift 4 && "$@"; }}\n'
        argv = ["/bin/sh", "-euc", inside + script.replace("/run/secrets", str(self.secrets))]
        subprocess.run(argv, env=self.environment(name), cwd=self.home, check=True)

    def program(self, name: str) -> Program:
        """Return how to run it; it is ready when its health check says so."""
        command, *arguments = self.argv(name)

        async def ready() -> bool:
            return await asyncio.to_thread(self.health, name) == 0

        return Program(
            name,
            [str(Path(sys.executable).parent / command), *arguments],
            ready,
            environment=self.environment(name),
            grace_seconds=seconds(self.service(name)["stop_grace_period"]),
            start_seconds=120,
        )

    def start(self, name: str) -> services.Process:
        return services.Process.start(self.program(name), self.home / f"{name}.log")


def environment_of(process: services.Process) -> str:
    return Path(f"/proc/{process.popen.pid}/environ").read_text()


def without_lz4(command: list[str]) -> dict[str, str]:
    """Return the options of Postgres' command but for those that the wheel's Postgres was not built for."""
    options = dict(argument.split("=") for argument in command if "=" in argument)
    return {name: value for name, value in options.items() if value != "lz4"}


def valkey_command(composed: Composed, server: Path) -> list[str]:
    """Return Valkey's command with its own program, port and folder."""
    _, *arguments = composed.service("valkey")["command"]
    secret = str(composed.secrets / "valkey_users")
    rewritten = [argument.replace("/run/secrets/valkey_users", secret) for argument in arguments]
    here = ["--bind", "127.0.0.1", "--port", str(composed.valkey_port), "--dir", str(composed.home)]
    return [str(server), *rewritten, *here]


def plain_environment() -> dict[str, str]:
    return {"PATH": os.environ["PATH"]}
