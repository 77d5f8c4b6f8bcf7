"""The stack that `promptmill up` runs on a data directory: how a command beside it finds it."""

import fcntl
import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Address:
    """How to reach a running stack. In `stack.json` of its data directory while it runs."""

    base_url: str
    api_key: str
    flower_url: str
    flower_user: str
    flower_password: str
    log_dir: str
    database_url: str
    webhook_key_file: str
    redis_url: str


def address_file(home: Path) -> Path:
    return home / "stack.json"


def running_stack(home: Path) -> Address | None:
    """Return how to reach the stack that runs on the data directory; None if none is ready."""
    try:
        address = Address(**json.loads(address_file(home).read_text()))
    except (FileNotFoundError, json.JSONDecodeError, TypeError):
        return None
    return address if _is_locked(home / "lock") else None


def _is_locked(path: Path) -> bool:
    """Whether a stack holds its lock; one that was killed leaves its files behind. Others may look at the same time."""
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        pass
    return False
