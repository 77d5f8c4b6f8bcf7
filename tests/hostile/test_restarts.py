"""F67: two API processes are restarted one after the other while clients work. What was answered for is there."""

import signal
import threading
from collections.abc import Callable
from typing import Any

import httpx2
import services
from payloads import CHAT, numbered

from api.stack.program import free_port

CLIENTS = 4


class Worker(threading.Thread):
    """A client that uploads and submits without end; if one server does not answer, it asks the other."""

    def __init__(self, ports: list[int], key: str, over: threading.Event) -> None:
        super().__init__()
        self.files: list[str] = []
        self.batches: list[str] = []
        self.answers: set[int] = set()
        self._ports, self._over = ports, over
        self._headers = {"authorization": f"Bearer {key}"}

    def run(self) -> None:
        while not self._over.is_set():
            file = {"file": ("a.jsonl", numbered(50))}
            if uploaded := self._post("/v1/files", data={"purpose": "batch"}, files=file):
                self.files.append(uploaded["id"])
                body = {"input_file_id": uploaded["id"], "endpoint": CHAT, "completion_window": "24h"}
                if created := self._post("/v1/batches", json=body):
                    self.batches.append(created["id"])

    def _post(self, path: str, **options: Any) -> Any:
        for port in self._ports:
            try:
                answer = httpx2.post(f"http://127.0.0.1:{port}{path}", headers=self._headers, timeout=60, **options)
            except httpx2.TransportError:
                continue
            self.answers.add(answer.status_code)
            return answer.json() if answer.status_code == 200 else None
        return None


def all_go_on(clients: list[Worker]) -> None:
    """Wait until each has submitted some more."""
    done = {client: len(client.batches) for client in clients}
    services.wait_until(lambda: all(len(each.batches) > count + 2 for each, count in done.items()), "all go on")


def test_f67_a_rolling_restart_loses_nothing(start: Callable[..., Any]) -> None:
    first = start()
    first.stack.know_model("scripted")
    first.stack.port = free_port()
    second = start(PROMPTMILL_API__PORT=str(first.stack.port))
    ports, over = [first.port, second.port], threading.Event()
    clients = [Worker(ports if number % 2 else ports[::-1], first.key, over) for number in range(CLIENTS)]
    for client in clients:
        client.start()
    try:
        for server in (first, second):
            all_go_on(clients)
            # uvicorn ends by the signal that it was sent, when it is done.
            assert server.process.stop() in (0, -signal.SIGTERM)
            first.stack.start("serve", wait_for="Uvicorn running on", PROMPTMILL_API__PORT=str(server.port))
        all_go_on(clients)
    finally:
        over.set()
        for client in clients:
            client.join()
    assert set().union(*(client.answers for client in clients)) == {200}, "a connection may fail, an answer may not"
    files = {row.id for row in first.rows("SELECT id FROM files WHERE status = 'processed'")}
    batches = {row.id for row in first.rows("SELECT id FROM batches WHERE status = 'in_progress'")}
    assert {each for client in clients for each in client.files} <= files
    assert {each for client in clients for each in client.batches} <= batches
