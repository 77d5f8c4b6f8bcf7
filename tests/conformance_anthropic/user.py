"""What a program does with the SDK; everything that comes back is noted for the report."""

import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import anthropic
from anthropic import Anthropic
from anthropic.types.messages import MessageBatch
from conformance.blocking import Mode
from conformance_anthropic import clients

POLL_SECONDS = 0.1
QUICK, SLOW = 4, 100
Request = dict[str, Any]


@dataclass(frozen=True)
class Target:
    """A server; the options of `conftest.py` say what each field is for."""

    base_url: str
    # Keys are in no traceback.
    api_key: str = field(repr=False)
    other_api_key: str | None = field(repr=False)
    model: str
    max_requests: int
    slow_prompt: str
    bad_body: Mapping[str, Any]
    patience_seconds: float


@dataclass
class User:
    """One client of the server, with one of the SDK's two clients."""

    target: Target
    mode: Mode
    sdk: Anthropic
    api_key: str = field(repr=False)
    notes: list[str] = field(default_factory=list)

    @property
    def batches(self) -> Any:
        # Not typed: the cases send on purpose what the SDK's types rule out.
        return self.sdk.messages.batches

    def see(self, *words: Any) -> None:
        """Note what came, for the report."""
        self.notes.append(" ".join(str(word) for word in words))

    @contextmanager
    def through(self, base_url: str, max_retries: int = 2) -> Iterator["User"]:
        """Yield the same user on another way to the server, with the SDK's own retries."""
        with clients.connect(self.mode, base_url, self.api_key, max_retries=max_retries) as sdk:
            yield User(self.target, self.mode, sdk, self.api_key, self.notes)

    def request(self, custom_id: str, prompt: str = "Say hello.", **params: Any) -> Request:
        """Return one valid request; `params` overrides."""
        messages = [{"role": "user", "content": prompt}]
        full = {"model": self.target.model, "max_tokens": 16, "messages": messages, **params}
        return {"custom_id": custom_id, "params": full}

    def requests(self, count: int, prefix: str = "row") -> list[Request]:
        return [self.request(f"{prefix}-{number}") for number in range(count)]

    def slow_requests(self) -> list[Request]:
        """Return a few requests that end soon, and many that do not."""
        slow = (self.request(f"slow-{number}", self.target.slow_prompt, max_tokens=1_000) for number in range(SLOW))
        return [*self.requests(QUICK), *slow]

    def create(self, requests: Sequence[Request]) -> MessageBatch:
        made: MessageBatch = self.batches.create(requests=requests)
        return made

    def wait(self, batch: MessageBatch) -> MessageBatch:
        """Return the batch when it has ended."""
        deadline = time.monotonic() + self.target.patience_seconds
        while batch.processing_status != "ended":
            assert time.monotonic() < deadline, f"gave up waiting for the batch; it is {batch.processing_status}"
            time.sleep(POLL_SECONDS)
            batch = self.batches.retrieve(batch.id)
        self.see(batch.processing_status, "with", _told(batch.request_counts.model_dump()))
        return batch

    def run(self, requests: Sequence[Request]) -> MessageBatch:
        return self.wait(self.create(requests))

    def results(self, batch: MessageBatch) -> dict[str, Any]:
        """Return the results of a batch that has ended, by custom_id; each may be there once only.

        What they are must be what the batch counts.
        """
        found = list(self.batches.results(batch.id))
        by_id = {each.custom_id: each.result for each in found}
        assert len(by_id) == len(found), "a custom_id is there twice"
        kinds = {"processing": 0, "succeeded": 0, "errored": 0, "canceled": 0, "expired": 0}
        assert batch.request_counts.model_dump() == kinds | Counter(result.type for result in by_id.values())
        return by_id

    def refused(self, status: int | tuple[int, ...], call: Callable[[], Any]) -> anthropic.APIStatusError:
        """Return the SDK's exception of a call that has to fail with this HTTP status, in Anthropic's shape."""
        wanted = status if isinstance(status, tuple) else (status,)
        try:
            answer = call()
        except anthropic.APIStatusError as refusal:
            error = refusal
        else:
            raise AssertionError(f"it was accepted: {type(answer).__name__}")
        self.see(words(error))
        if error.status_code not in wanted:
            raise AssertionError(words(error))
        assert isinstance(error.body, dict) and error.body["type"] == "error", f"no error object: {error.body!r}"
        assert isinstance(error.body["error"]["message"], str)
        assert error.request_id, "the reply has no `request-id`"
        return error


def kind(error: anthropic.APIStatusError) -> str:
    """Return the type of the error, as the body has it: not every version of the SDK has a name for it."""
    body: Any = error.body
    return str(body["error"]["type"])


def words(error: anthropic.APIStatusError) -> str:
    """Return the error in one line."""
    body = error.body.get("error") if isinstance(error.body, dict) else None
    told = f"{body.get('type')}: {body.get('message')}" if isinstance(body, dict) else error.body
    return f"{error.status_code} {type(error).__name__}, {told}"


def _told(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in counts.items() if number)


def text(result: Any) -> str:
    """Return the text of a result that has to be one that succeeded."""
    assert result.type == "succeeded", f"it is {result.type}"
    return "".join(block.text for block in result.message.content if block.type == "text")


def shape(answer: Any) -> dict[str, Any]:
    """Return an object of the SDK as the JSON that it was made from: with the fields that were sent, and no others."""
    return dict(answer.to_dict(mode="json"))


def unique(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex}"
