"""F86, F111: what clients send is in the results, and nowhere else; a key and a password are nowhere at all."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest
import scrapes
import services
from clients import User
from payloads import jsonl, numbered, request
from sqlalchemy import text

CANARY = "CANARY"


@pytest.fixture(scope="module")
def running(
    servers: services.Servers, template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[services.Stack]:
    with services.scripted_stack(servers, template, tmp_path_factory.mktemp("stack")) as stack:
        scrapes.watch(stack)
        yield stack


@contextmanager
def redis_traffic(stack: services.Stack) -> Iterator[list[str]]:
    """Collect every command that Redis gets in the block: messages, events, all."""
    seen: list[str] = []
    over = "the end of the traffic"
    with stack.redis() as broker, stack.redis() as sender, broker.monitor() as monitor:

        def listen() -> None:
            for command in monitor.listen():
                seen.append(str(command))
                if over in seen[-1]:
                    return

        thread = threading.Thread(target=listen)
        thread.start()
        try:
            yield seen
        finally:
            sender.echo(over)
            thread.join()


@contextmanager
def table_away(stack: services.Stack, name: str) -> Iterator[None]:
    """Take a table away, so that statements fail in the middle of everything."""
    engine = stack.engine()
    with engine.begin() as connection:
        connection.execute(text(f"ALTER TABLE {name} RENAME TO away"))
    try:
        yield
    finally:
        with engine.begin() as connection:
            connection.execute(text(f"ALTER TABLE away RENAME TO {name}"))
        engine.dispose()


def logs(stack: services.Stack) -> str:
    return "".join(process.log.read_text(errors="replace") for process in stack.processes)


def successes_and_failures(user: User) -> None:
    prompts = {
        0: f"{CANARY}-prompt",
        1: f"REJECT {CANARY}-rejected",
        2: f"ERROR {CANARY}-error",
        # Raises an error that quotes it.
        3: f"SLEEP {CANARY}-quoted",
        4: f"{CANARY}-unicode \ud83d\ude00",
    }
    data = numbered(50, lambda number: prompts.get(number, f"{CANARY}-other")).replace(b"row-9", b"CANARY-custom-id")
    file = user.sdk.files.create(file=(f"{CANARY}-name.jsonl", data), purpose="batch")
    batch = user.sdk.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={CANARY: CANARY}
    )
    batch = user.wait(batch.id)
    assert batch.request_counts and (batch.request_counts.completed, batch.request_counts.failed) == (47, 3)
    user.submit(jsonl([request("a")]) + b'{"CANARY-line": nope\n{"CANARY-key": 1, "CANARY-key": 2}\n')


def refusals(stack: services.Stack, user: User) -> None:
    url = f"http://127.0.0.1:{stack.port}"
    mine = {"authorization": f"Bearer {user.sdk.api_key}"}
    for path in ("/v1/files/CANARY", "/v1/batches/CANARY", "/v1/CANARY?CANARY=CANARY", "/v1/batches?limit=CANARY"):
        assert httpx2.get(url + path, headers={**mine, "user-agent": CANARY, "x-request-id": CANARY}).status_code >= 400
    assert httpx2.get(url + "/v1/files", headers={"authorization": f"Bearer {CANARY}"}).status_code == 401
    assert httpx2.post(url + "/v1/batches", headers=mine, content=b'{"CANARY').status_code == 400
    assert httpx2.post(url + "/v1/batches", headers=mine, json={"endpoint": CANARY}).status_code == 400
    assert httpx2.post(url + "/v1/files", headers=mine, data={CANARY: CANARY}).status_code == 400


def bugs(stack: services.Stack, user: User) -> None:
    """The API and the worker meet errors of the database that quote statements, parameters and rows."""
    url = f"http://127.0.0.1:{stack.port}"
    mine = {"authorization": f"Bearer {user.sdk.api_key}"}
    with table_away(stack, "batches"):
        for path in ("/v1/batches/CANARY", "/v1/batches?after=CANARY"):
            broken = httpx2.get(url + path, headers=mine)
            assert broken.status_code == 500
            assert "CANARY" not in broken.text
    batch = user.submit(numbered(300, lambda number: f"SLEEP 0.2 {CANARY}-{number}"))
    with table_away(stack, "results"):
        worker = stack.processes[2]
        services.wait_until(lambda: "Error" in worker.log.read_text() or "error" in worker.log.read_text(), "it fails")
    user.wait(batch.id)


def test_f111_a_canary_sings_in_no_log_and_no_message(running: services.Stack) -> None:
    key = running.key()
    user = User(running, key)
    with redis_traffic(running) as traffic:
        successes_and_failures(user)
        refusals(running, user)
        bugs(running, user)
    user.sdk.close()
    logged, sent = logs(running), "\n".join(traffic)
    assert "shard_ended" in logged
    assert "unexpected_error" in logged
    assert "LPUSH" in sent, "messages were seen"
    shown = "".join(scrapes.text(port) for port in scrapes.ports(running))
    assert "promptmill_rows_total" in shown
    with running.redis() as broker:
        kept = "\n".join(str(broker.dump(name)) for name in broker.scan_iter("*"))
    for where in (logged, sent, kept, shown):
        assert CANARY not in where
        assert key.rsplit("_", 1)[1] not in where
        assert services.PASSWORD not in where


MARKS: list[Any] = [
    '{"__type__":"uuid","__value__":1}',
    '{"__type__":"datetime","__value__":"2020-01-01T00:00:00"}',
    '{"py/object": "os.system", "py/reduce": []}',
    "!!python/object/apply:os.system ['true']",
    "gASVAAAAAAAAAACMBXBvc2l4lIwGc3lzdGVtlJOULg==",
    "__import__('os').system('true')",
    "{{ 7 * 7 }} ${7*7} #{7*7} %(x)s {0.__class__}",
    "x\x00y",
]


def test_f86_f73_marks_of_serializers_come_back_as_they_were(running: services.Stack) -> None:
    """Kombu's JSON would make objects of the first two; no word of a request goes through it."""
    user = User(running)
    data = jsonl(request(f"row-{number}", mark) for number, mark in enumerate(MARKS))
    # Also as JSON, where a deserializer might look.
    nested = {**request("nested"), "body": {**request("")["body"], "metadata": {"__type__": "uuid", "__value__": "1"}}}
    with redis_traffic(running) as traffic:
        batch = user.wait(user.submit(data + json.dumps(nested).encode() + b"\n").id)
    assert batch.request_counts and batch.request_counts.completed == len(MARKS) + 1
    rows = {
        row["custom_id"]: row["response"]["body"]["choices"][0]["message"]["content"]
        for row in user.rows(batch.output_file_id)
    }
    assert [rows[f"row-{number}"] for number in range(len(MARKS))] == MARKS
    assert not any("__type__" in command for command in traffic)
    user.sdk.close()
