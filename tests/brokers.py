"""Redis as tests of faults need it: one that may be killed, what lies in its queue, and processes that are spoilt."""

import base64
import json
import pickle
import textwrap
import uuid
from collections.abc import Iterable, Mapping
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
# Stands in all that is no hint; in no log.
CANARY = "CANARY"
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


def poison(shard_id: str) -> list[bytes]:
    """Return messages that would run the shard, or code, if they were taken for more than bytes."""
    hint = body(shard_id)
    after = {"task": "shards.run", "args": [shard_id], "kwargs": {}, "options": {}}
    by_mark = [{"__type__": "datetime", "__value__": CANARY}, {"__type__": "uuid", "__value__": {"hex": CANARY}}]
    envelopes = [
        envelope(pickle.dumps(([shard_id], {CANARY: 1}, {})), content_type="application/x-python-serialize"),
        envelope(pickle.dumps(([shard_id], {}, {})), content_encoding="binary"),
        envelope(f"!!python/object/apply:os.system ['{CANARY}']".encode(), content_type="application/x-yaml"),
        envelope(hint, {"task": f"{CANARY}.task"}),
        envelope(hint, {"task": "celery.backend_cleanup"}),
        *[envelope(body(mark)) for mark in by_mark],
        envelope(body({"__type__": "decimal", "__value__": "1.5"})),
        envelope(body({CANARY: shard_id})),
        envelope(body(f"{shard_id}\x00")),
        envelope(body(shard_id, {CANARY: 1})),
        envelope(body(shard_id, followers={**FOLLOWERS, "chain": [after]})),
        envelope(body(shard_id, followers={**FOLLOWERS, "callbacks": [after]})),
        # Valid JSON of another kind once ended the worker, and was put back for the next one.
        envelope(json.dumps(CANARY).encode()),
        envelope(b'[["' + shard_id.encode()),
        envelope(hint, {"eta": CANARY}),
        envelope(hint, {"expires": "2000-01-01T00:00:00"}),
        envelope(hint, {"compression": "application/x-gzip"}),
        envelope(hint, {"id": f"{CANARY}\n{CANARY}"}),
        envelope(hint, {"timelimit": [CANARY, 3]}),
        envelope(hint, body=f"*{CANARY}"),
        {**envelope(hint), "headers": None},
        envelope(hint, properties={CANARY: 1}),
    ]
    no_json = [
        json.dumps(envelope(hint)).encode()[:100],
        pickle.dumps(CANARY),
        json.dumps(by_mark[1]).encode(),
        json.dumps([CANARY]).encode(),
        b'{"CANARY":' + b"[" * 200_000,
        b"",
    ]
    return [json.dumps(each).encode() for each in envelopes] + no_json


def hints(shard_ids: Iterable[str]) -> list[bytes]:
    """Return good hints of those shards, as Redis holds them."""
    return [json.dumps(envelope(body(shard_id))).encode() for shard_id in shard_ids]
