"""What a user's program does, with the stock `openai` SDK."""

import weakref
from collections.abc import Callable
from typing import Any

import services
from openai import InternalServerError, OpenAI
from openai.types import Batch, FileObject
from payloads import CHAT, parse

TERMINAL = {"completed", "failed", "expired", "cancelled"}


class User:
    """A client of one project. What it was told and what it saw is noted at the stack, for `invariants.check_stack`."""

    def __init__(self, stack: services.Stack, key: str | None = None) -> None:
        self._stack = stack
        self.sdk = OpenAI(base_url=stack.base_url, api_key=key or stack.key(), max_retries=0)
        # Also where the collector comes upon its sockets before it comes upon the client.
        weakref.finalize(self, self.sdk.close)

    def upload(self, data: bytes, filename: str = "requests.jsonl") -> FileObject:
        file = self.sdk.files.create(file=(filename, data), purpose="batch")
        self._stack.acknowledged[file.id] = data
        return file

    def create(self, file_id: str, endpoint: Any = CHAT, **options: Any) -> Batch:
        return self.sdk.batches.create(input_file_id=file_id, endpoint=endpoint, completion_window="24h", **options)

    def submit(self, data: bytes, endpoint: Any = CHAT, **options: Any) -> Batch:
        return self.create(self.upload(data).id, endpoint, **options)

    def batch(self, batch_id: str) -> Batch:
        return self.sdk.batches.retrieve(batch_id)

    def look(self, batch_id: str) -> Batch | None:
        """Return the batch; None for the answer "not now", with the time to come again."""
        try:
            return self.batch(batch_id)
        except InternalServerError as error:
            if is_not_now(error):
                return None
            raise

    def wait(self, batch_id: str, seconds: float = 90) -> Batch:
        return self.wait_for(batch_id, lambda batch: batch.status in TERMINAL, seconds)

    def wait_for(self, batch_id: str, condition: Callable[[Batch], bool], seconds: float = 90) -> Batch:
        services.wait_until(lambda: condition(self.batch(batch_id)), f"{self.batch(batch_id)}", seconds)
        return self.batch(batch_id)

    def rows(self, file_id: str | None) -> list[dict[str, Any]]:
        if file_id is None:
            return []
        content = self.sdk.files.content(file_id).content
        self._stack.read[file_id].update(content.splitlines(keepends=True))
        return parse(content)

    def results(self, batch: Batch) -> dict[str, dict[str, Any]]:
        """Return all rows of both files by custom_id; each may be there once only."""
        rows = self.rows(batch.output_file_id) + self.rows(batch.error_file_id)
        by_id = {row["custom_id"]: row for row in rows}
        assert len(by_id) == len(rows), "every custom_id once"
        return by_id


def is_not_now(error: InternalServerError) -> bool:
    """Tell whether the answer is what a server says that is full, or whose Postgres is away."""
    asked_back = int(error.response.headers.get("retry-after", "0"))
    return error.status_code == 503 and error.code == "service_unavailable" and asked_back > 0


def done(batch: Batch) -> int:
    assert batch.request_counts
    return batch.request_counts.completed + batch.request_counts.failed
