"""The HTTP service in process, and its clients."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import services
from payloads import CHAT, numbered
from pydantic import SecretStr
from sqlalchemy import Engine
from starlette.testclient import TestClient

from api.app import create_app
from jobs import db, keys
from jobs.settings import Settings


class Client:
    """A project's client."""

    def __init__(self, http: TestClient, key: str) -> None:
        self.http, self.key, self.headers = http, key, {"authorization": f"Bearer {key}"}

    def call(self, method: str, path: str, **options: Any) -> Any:
        return self.http.request(method, path, headers=self.headers, **options)

    def upload(self, data: bytes, **fields: str) -> Any:
        form = {"purpose": "batch", **fields}
        return self.call("POST", "/v1/files", data=form, files={"file": ("my file.jsonl", data)})

    def file_id(self, count: int = 3) -> str:
        return str(self.upload(numbered(count)).json()["id"])

    def create(self, **changes: Any) -> Any:
        body = {"endpoint": CHAT, "completion_window": "24h", **changes}
        return self.call("POST", "/v1/batches", json=body)

    def batch_id(self) -> str:
        return str(self.create(input_file_id=self.file_id()).json()["id"])


@contextlib.contextmanager
def serving(database_url: str, servers: services.Servers, **settings: Any) -> Iterator[TestClient]:
    app = create_app(Settings(database_url=SecretStr(database_url), redis_url=SecretStr(servers.redis_url), **settings))
    with TestClient(app) as client:
        yield client
        # A connection that comes back into a pool that is gone is never closed.
        no_reader_left()


def no_reader_left() -> None:
    """Wait for the page that is read ahead; its connection goes back to the pool."""

    def ended() -> bool:
        return not any(thread.name.startswith("content") for thread in threading.enumerate())

    services.wait_until(ended, "readers end", 10)


def another(engine: Engine, http: TestClient, project: str, **options: Any) -> Client:
    """Return a client of a project; `options` are those of its key."""
    with db.transaction(engine) as connection:
        return Client(http, keys.create(connection, project=project, name="", **options))


def error(response: Any) -> tuple[int, str | None, str | None]:
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    assert response.headers["x-request-id"].startswith("req_")
    return response.status_code, body["error"]["param"], body["error"]["code"]
