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
    # A stack that was killed leaves its file behind.
    with (home / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return address
    return None
