"""The secrets of an embedded stack: made once, kept in its data directory, readable by its owner only."""

import json
import os
import secrets
from dataclasses import asdict, dataclass, field
from pathlib import Path

from jobs import vault
from jobs.failpoints import failpoint


def new_password() -> str:
    return secrets.token_hex(24)


@dataclass
class Credentials:
    """Passwords between the processes, and the API key that is shown to the user."""

    # Of the owner of the tables, and of the processes, who may do less.
    postgres: str = field(default_factory=new_password)
    postgres_api: str = field(default_factory=new_password)
    postgres_worker: str = field(default_factory=new_password)
    postgres_reconciler: str = field(default_factory=new_password)
    valkey: str = field(default_factory=new_password)
    flower: str = field(default_factory=lambda: secrets.token_hex(8))
    api_key: str | None = None


def load(data_dir: Path) -> Credentials:
    """Return the stack's secrets; the first time, make them."""
    path = _path(data_dir)
    if path.exists():
        return Credentials(**json.loads(path.read_text()))
    credentials = Credentials()
    save(data_dir, credentials)
    return credentials


def webhook_key_file(data_dir: Path) -> Path:
    """Return the file with the keys of webhooks' secrets; the first time, make it with one key.

    A file of its own, not part of what is loaded: a new key is a line at its end.
    """
    path = data_dir / "webhooks.keys"
    if not path.exists():
        write(path, vault.new_key() + "\n")
    return path


def save(data_dir: Path, credentials: Credentials) -> None:
    """Write the secrets; a crash leaves the old ones or the new ones."""
    write(_path(data_dir), json.dumps(asdict(credentials)))


def write(path: Path, content: str, mode: int = 0o600) -> None:
    """Write a file, with these rights; a crash leaves the old one or the new one."""
    fresh = path.with_name(path.name + ".new")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        os.fchmod(file.fileno(), mode)
        file.write(content)
        file.flush()
        failpoint("save_credentials.before_fsync")
        os.fsync(file.fileno())
    failpoint("save_credentials.before_rename")
    fresh.replace(path)
    failpoint("save_credentials.after_rename")


def _path(data_dir: Path) -> Path:
    return data_dir / "credentials.json"
