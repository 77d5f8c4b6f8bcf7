"""Redis as tests of faults need it: one that may be killed, what lies in its queue, and processes that are spoilt."""

import base64
import json
import textwrap
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import redis
import services
from sqlalchemy import text

from api.stack import valkey
from api.stack.program import free_port

QUEUE = "promptmill:shards.scripted"
UNACKED, UNACKED_INDEX = "promptmill:unacked", "promptmill:unacked_index"
# A worker that hears of shards through Redis or not at all.
NO_POLLING = {"PROMPTMILL_WORKER__POLL_SECONDS": "86400"}
FOLLOWERS: Mapping[str, Any] = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


class OwnRedis:
    """A Valkey of one test, to do with as it likes."""

    def __init__(self, home: Path) -> None:
        self.home, self._log = home / "valkey", home / "valkey.log"
        self.port = free_port()
        self.url = valkey.url(self.port, services.PASSWORD)
        self.start()

    def start(self) -> None:
        program = valkey.program(self.home, self.port, services.PASSWORD)
        self.process = services.Process.start(program, self._log)

    def client(self) -> "redis.Redis":
        return redis.Redis.from_url(self.url, decode_responses=True)


def rows(stack: services.Stack, statement: str) -> list[Any]:
    """Return what the stack's database answers; rows of one column as their values."""
    engine = stack.engine()
    try:
        with engine.connect() as connection:
            found = connection.execute(text(statement)).all()
    finally:
        engine.dispose()
    return [row[0] if len(row) == 1 else tuple(row) for row in found]


def hints_heard(worker: services.Process) -> int:
    """Return how many hints a worker has taken out of Redis."""
    return worker.log.read_text(errors="replace").count("] received")


def injected(folder: Path, code: str) -> dict[str, str]:
    """Return the environment of a process that runs `code` before anything of its own."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(textwrap.dedent(code))
    return {"PYTHONPATH": str(folder)}


def body(shard_id: Any, keywords: Any = (), followers: Mapping[str, Any] = FOLLOWERS) -> bytes:
    """Return the body of a hint."""
    return json.dumps([[shard_id], dict(keywords), followers]).encode()


def envelope(content: bytes, headers: Mapping[str, Any] = {}, **changes: Any) -> dict[str, Any]:
    """Return a message as kombu writes it into the list of a queue."""
    return {
        "body": base64.b64encode(content).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"lang": "py", "task": "shards.run", "id": str(uuid.uuid4()), "retries": 0, **(headers or {})},
        "properties": {
            "correlation_id": str(uuid.uuid4()),
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": "shards.scripted"},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": str(uuid.uuid4()),
        },
        **{name.replace("_", "-"): value for name, value in changes.items()},
    }
