"""The commands of operators print one JSON document each, if they are asked to."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import services
from typer.testing import CliRunner

from api import cli
from jobs import settings

Command = Callable[..., Any]


@pytest.fixture
def command(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Command]:
    monkeypatch.setenv("PROMPTMILL_DATABASE_URL", database_url)
    monkeypatch.setenv("PROMPTMILL_ALIVE_FILE", str(tmp_path / "never"))
    monkeypatch.setenv(services.KEY_FILE_VARIABLE, str(services.KEY_FILE))

    def run(*arguments: str, ends: int = 0) -> Any:
        result = CliRunner().invoke(cli.app, [*arguments, "--json"])
        assert result.exit_code == ends, (result.output, result.exception)
        return json.loads(result.stdout)

    settings.load.cache_clear()
    yield run
    settings.load.cache_clear()


def test_keys_projects_and_deeds(command: Command) -> None:
    made = command("keys", "create", "--project", "new", "--name", "ci", "--scope", "files.read")
    assert (made["project"], made["name"], made["scopes"]) == ("new", "ci", ["files.read"])
    assert command("projects", "limit", "new", "--max-files", "3") == {"name": "new", "max_files": 3}
    assert [each["max_files"] for each in command("projects", "list") if each["name"] == "new"] == [3]
    assert command("keys", "revoke", made["key"]) == {"revoked": True}
    (listed,) = [each for each in command("keys", "list") if each["project"] == "new"]
    assert (listed["id"], listed["state"]) == (made["key"].split("_")[1], "revoked")
    deeds = command("audit", "--project", "new")
    assert [each["action"] for each in deeds] == ["project.created", "key.created", "project.limited", "key.revoked"]


def test_webhooks(command: Command) -> None:
    command("keys", "create")
    made = command("webhooks", "create", "https://example.com/hook", "--event", "batch.completed")
    assert (made["event_types"], made["signing_secret"][:6]) == (["batch.completed"], "whsec_")
    assert command("webhooks", "rotate", made["id"])["signing_secret"] != made["signing_secret"]
    (listed,) = command("webhooks", "list")
    assert listed["id"] == made["id"]
    assert "signing_secret" not in listed
    assert command("webhooks", "seal") == {"sealed": 1}
    assert command("webhooks", "delete", made["id"]) == {"id": made["id"], "deleted": True}
    assert command("webhooks", "new-key")["key"]


def test_workers(command: Command) -> None:
    assert command("workers", "require", "0.1.0") == {"version": "0.1.0"}
    assert command("workers", "require", "none") == {"version": None}
    assert command("workers", "list") == []


def test_deployments(command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    made = command("secrets", str(folder))["made"]
    assert sorted(made) == sorted(map(str, folder.iterdir()))
    assert command("secrets", str(folder)) == {"made": []}
    newest = max(path.name[:4] for path in (cli.ROOT / "migrations" / "versions").glob("[0-9]*.py"))
    assert command("migrate")["revision"].startswith(newest)
    assert command("healthy", "reconciler", ends=1) == {"process": "reconciler", "healthy": False}
