"""What a program does with the SDK; everything that comes back is noted for the report."""

import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import openai
from conformance import clients, lines
from conformance.blocking import Mode
from conformance.lines import CHAT
from conformance.target import Target
from openai import OpenAI
from openai.types import Batch, FileObject

TERMINAL = {"completed", "failed", "expired", "cancelled"}
POLL_SECONDS = 0.1
Data = bytes | list[dict[str, Any]]


@dataclass
class User:
    """One client of the server, with one of the SDK's two clients."""

    target: Target
    mode: Mode
    sdk: OpenAI
    api_key: str = field(repr=False)
    notes: list[str] = field(default_factory=list)

    @property
    def make(self) -> lines.Rows:
        return lines.Rows(self.target.model)

    def see(self, *words: Any) -> None:
        """Note what came, for the report."""
        self.notes.append(" ".join(str(word) for word in words))

    @contextmanager
    def through(self, base_url: str, max_retries: int = 2) -> Iterator["User"]:
        """Yield the same user on another way to the server, with the SDK's own retries."""
        with clients.connect(self.mode, base_url, self.api_key, max_retries=max_retries) as sdk:
            yield User(self.target, self.mode, sdk, self.api_key, self.notes)

    def upload(self, data: Data, **options: Any) -> FileObject:
        content = data if isinstance(data, bytes) else lines.jsonl(data)
        return self.sdk.files.create(**{"file": ("requests.jsonl", content), "purpose": "batch", **options})

    def create(self, file_id: str, **options: Any) -> Batch:
        asked = {"endpoint": CHAT, "completion_window": "24h", **options}
        return self.sdk.batches.create(input_file_id=file_id, **asked)

    def submit(self, data: Data, **options: Any) -> Batch:
        return self.create(self.upload(data).id, **options)

    def wait(self, batch: Batch) -> Batch:
        """Return the batch when it has ended."""
        return self.wait_for(batch, lambda found: found.status in TERMINAL, "to end")

    def wait_for(self, batch: Batch, condition: Callable[[Batch], bool], what: str) -> Batch:
        deadline = time.monotonic() + self.target.patience_seconds
        while not condition(batch):
            assert time.monotonic() < deadline, f"gave up waiting for the batch {what}; it is {batch.status}"
            time.sleep(POLL_SECONDS)
            batch = self.sdk.batches.retrieve(batch.id)
        return batch

    def run(self, data: Data, **options: Any) -> Batch:
        """Return the batch when it has completed."""
        batch = self.wait(self.submit(data, **options))
        self.see(batch.status)
        assert batch.status == "completed", f"the batch is {batch.status}: {batch.errors}"
        return batch

    def rows(self, file_id: str | None) -> list[dict[str, Any]]:
        """Return the rows of a result file; of none if there is no file."""
        assert file_id != "", "a file that is not there has the id null, not an empty one"
        return [] if file_id is None else lines.parse(self.sdk.files.content(file_id).content)

    def results(self, batch: Batch) -> dict[str, dict[str, Any]]:
        """Return the rows of both files by custom_id; each may be there once only."""
        rows = self.rows(batch.output_file_id) + self.rows(batch.error_file_id)
        by_id = {row["custom_id"]: row for row in rows}
        assert len(by_id) == len(rows), "a custom_id is there twice"
        return by_id

    def refused(self, status: int | tuple[int, ...], call: Callable[[], Any]) -> openai.APIStatusError:
        """Return the SDK's exception of a call that has to fail with this HTTP status."""
        wanted = status if isinstance(status, tuple) else (status,)
        try:
            answer = call()
        except openai.APIStatusError as refusal:
            error = refusal
        else:
            raise AssertionError(f"it was accepted: {type(answer).__name__}")
        self.see(words(error))
        if error.status_code not in wanted:
            raise AssertionError(words(error))
        return error

    def unusable(self, data: Data) -> None:
        """A file that no batch may run on: it is refused at the upload, or its batch fails validation."""
        try:
            file = self.upload(data)
        except openai.APIStatusError as error:
            self.see(words(error))
            if error.status_code not in (400, 413):
                raise AssertionError(words(error)) from None
        else:
            self.problems_of(self.create(file.id))

    def slow_data(self) -> bytes:
        """Return an input file with a few requests that end soon, and many that do not."""
        rest = [self.make.row(f"slow-{number}", self.target.slow_prompt, max_tokens=1_000) for number in range(100)]
        return lines.jsonl(self.make.rows(4) + rest)

    def wait_for_a_row(self, batch: Batch) -> Batch:
        """Return the batch when some of its requests are done."""
        return self.wait_for(
            batch, lambda found: bool(found.request_counts and found.request_counts.completed), "for a row"
        )

    def problems(self, data: Data, **options: Any) -> list[dict[str, Any]]:
        """Return the errors of a batch that has to fail validation."""
        return self.problems_of(self.submit(data, **options))

    def problems_of(self, batch: Batch) -> list[dict[str, Any]]:
        batch = self.wait(batch)
        shown = shape(batch)
        errors = shown.get("errors") or {}
        found = errors.get("data") or []
        self.see(f"{batch.status}:", "; ".join(_problem(each) for each in found))
        assert batch.status == "failed", f"the batch is {batch.status}"
        assert errors.get("object") == "list", "`errors` is a list object"
        assert isinstance(batch.failed_at, int), "`failed_at` is set"
        assert (batch.output_file_id, batch.error_file_id) == (None, None), "nothing ran"
        return list(found)


def shape(answer: Any) -> dict[str, Any]:
    """Return an object of the SDK as the JSON that it was made from: with the fields that were sent, and no others."""
    return dict(answer.to_dict())


def said(error: openai.APIStatusError) -> dict[str, Any]:
    """Return what the SDK took from `{"error": {...}}`."""
    assert isinstance(error.body, dict), f"{error.status_code} and no error object: {error.body!r}"
    return error.body


def words(error: openai.APIStatusError) -> str:
    """Return the error in one line."""
    body = error.body if isinstance(error.body, dict) else {}
    named = "".join(f", {name} {body[name]}" for name in ("param", "code") if body.get(name))
    return f"{error.status_code}{named}: {body.get('message', error.body)}"


def _problem(problem: Mapping[str, Any]) -> str:
    place = "" if problem.get("line") is None else f" in line {problem['line']}"
    return f"{problem.get('code')}{place}, param {problem.get('param')}"


def unique(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex}"
