"""Tenants at work: each of their programs submits a batch, waits, reads and checks it, again and again.

All through the stock `openai` SDK. A call that got no answer, or "not now", is repeated with its Idempotency-Key, at the
next of the API's processes. What a row comes to is known beforehand, since the engine does what its prompt says.
"""

import itertools
import random
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from clients import TERMINAL
from openai import APIConnectionError, APITimeoutError, ConflictError, InternalServerError, NotFoundError, OpenAI
from openai.types import Batch
from payloads import jsonl, parse, request
from soak.ledger import Ledger
from sqlalchemy import Engine, TextClause, text
from sqlalchemy.exc import SQLAlchemyError

Result = TypeVar("Result")
PROGRAMS_A_TENANT = 4
ROWS = 50, 400
POLL_SECONDS = 0.3
# What a row asks for, and how often.
KINDS = {"plain": 70, "SLEEP": 14, "REORDER": 9, "REJECT": 4, "ERROR": 3}
# One row of one batch in so many kills its worker: once, each time, or the engine only.
CRASHES, CRASH_EVERY = ("CRASH_ONCE", "CRASH", "FATAL"), 25
CANCELLED, INPUT_DELETED, RESULTS_DELETED = 0.12, 0.6, 0.3
# The code of a row that fails as it asked to.
CODES = {"REJECT": "rejected", "ERROR": "engine_error", "CRASH": "engine_crashed", "FATAL": "engine_crashed"}
COMMITTED = text(
    "SELECT DISTINCT extract(epoch FROM pg_xact_commit_timestamp(xmin))::float8 FROM results "
    "WHERE batch_id = :id AND status_code IS NOT NULL"
)
# Whether a request that failed as `engine_crashed` was alone with two workers that were killed or cut off: nobody can
# tell it from one that kills. Only leases that ended by themselves count: an engine that says that it died (`died`) has
# met a request that asks for it, and no other is to pay for that.
EXPLAINED = text(
    """
    SELECT count(*) >= 2 FROM requests r
    JOIN shards s ON s.batch_id = r.batch_id AND s.model_no = r.model_no
                 AND r.line_no BETWEEN s.first_line AND s.last_line
    JOIN attempts a ON a.shard_id = s.id
    WHERE r.batch_id = :batch_id AND r.custom_id = :custom_id
      AND a.end_reason = 'lost' AND a.aboard_line >= r.line_no AND a.lease_token > s.suspect_since
      -- All others of its shard had ended by then.
      AND NOT EXISTS (
          SELECT FROM requests o LEFT JOIN results x USING (batch_id, line_no)
          WHERE o.batch_id = s.batch_id AND o.model_no = s.model_no AND o.line_no <> r.line_no
            AND o.line_no BETWEEN s.first_line AND s.last_line
            AND (x.lease_token IS NULL OR x.lease_token > a.lease_token))
      -- A shard that is cut takes its attempts along: what others have too was not of this request alone.
      AND NOT EXISTS (
          SELECT FROM attempts b WHERE b.shard_id <> a.shard_id
            AND (b.worker_id, b.started_at) = (a.worker_id, a.started_at))
    """
)


@dataclass(frozen=True)
class Work:
    """What all programs share."""

    base_urls: Sequence[str]
    engine: Engine
    ledger: Ledger
    home: Path
    is_over: threading.Event
    """No new batch is begun."""
    is_hopeless: threading.Event
    """Nobody waits any longer."""


class Program:
    """One program of a tenant, in a thread of its own."""

    def __init__(self, work: Work, tenant: str, key: str, seed: str) -> None:
        self.tenant = tenant
        # Daemon: a soak that fails must not wait for it.
        self.thread = threading.Thread(target=self._run, name=f"program {seed}", daemon=True)
        self._work, self.ledger, self._random = work, work.ledger, random.Random(seed)
        self._sdks = [OpenAI(base_url=url, api_key=key, max_retries=0, timeout=30) for url in work.base_urls]
        self._next: Iterator[OpenAI] = itertools.cycle(self._sdks)

    def _run(self) -> None:
        try:
            while not self._work.is_over.wait(self._random.uniform(0, 1)):
                self._one_batch()
        except Exception as error:  # noqa: BLE001  whatever it is, it is no answer that a client should get
            self.ledger.accuse("wrong", f"{self.thread.name}: {type(error).__name__}: {error}")

    def close(self) -> None:
        for sdk in self._sdks:
            sdk.close()

    def _one_batch(self) -> None:
        asked = self._ask()
        data = jsonl(request(custom_id, prompt) for custom_id, prompt in asked.items())
        batch = self._submit(data)
        will_cancel = self._random.random() < CANCELLED
        if will_cancel:
            self._work.is_over.wait(self._random.uniform(0, 3))
            self._cancel(batch.id)
        if ended := self._wait(batch.id):
            self._check(asked, ended, may_be_cancelled=will_cancel)
            self._clear(ended)

    def _ask(self) -> dict[str, str]:
        """Return the prompts of a batch, by custom_id."""
        count = self._random.randint(*ROWS)
        kinds = self._random.choices(list(KINDS), list(KINDS.values()), k=count)
        if self._random.randrange(CRASH_EVERY) == 0:
            kinds[self._random.randrange(count)] = self._random.choice(CRASHES)
        name = uuid.uuid4().hex
        return {f"{name}-{number}": self._prompt(kind, f"{name} {number}") for number, kind in enumerate(kinds)}

    def _prompt(self, kind: str, words: str) -> str:
        if kind == "SLEEP":
            return f"SLEEP {self._random.uniform(0.05, 1.5):.2f} {words}"
        if kind == "CRASH_ONCE":
            return f"CRASH_ONCE {self._work.home / uuid.uuid4().hex} {words}"
        return words if kind == "plain" else f"{kind} {words}"

    def patiently(self, call: Callable[[OpenAI], Result]) -> Result:
        """Call until there is an answer."""
        while True:
            try:
                return call(next(self._next))
            except (APIConnectionError, InternalServerError) as error:
                self.ledger.saw(_name(error))
                if self._work.is_hopeless.wait(0.2):
                    raise

    def _submit(self, data: bytes) -> Batch:
        keys = [{"Idempotency-Key": uuid.uuid4().hex} for _ in range(2)]
        file = self.patiently(
            lambda sdk: sdk.files.create(file=("rows.jsonl", data), purpose="batch", extra_headers=keys[0])
        )
        self.ledger.acknowledged[file.id] = data
        batch = self.patiently(
            lambda sdk: sdk.batches.create(
                input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", extra_headers=keys[1]
            )
        )
        with self.ledger.lock:
            self.ledger.batches.setdefault(self.tenant, set()).add(batch.id)
        self.ledger.count("batches")
        return batch

    def _cancel(self, batch_id: str) -> None:
        try:
            self.patiently(lambda sdk: sdk.batches.cancel(batch_id))
        except ConflictError:
            self.ledger.count("cancelled too late")

    def _wait(self, batch_id: str) -> Batch | None:
        """Return the batch when it has ended; None if nobody waits any longer."""
        while not self._work.is_hopeless.wait(POLL_SECONDS):
            batch = self.patiently(lambda sdk: sdk.batches.retrieve(batch_id))
            self.ledger.open[batch_id] = batch.status
            if batch.status in TERMINAL:
                del self.ledger.open[batch_id]
                return batch
        return None

    def _check(self, asked: dict[str, str], batch: Batch, *, may_be_cancelled: bool) -> None:
        succeeded, failed = self._rows(batch.output_file_id), self._rows(batch.error_file_id)
        self.ledger.count("rows", len(asked))
        self.ledger.count(f"batches {batch.status}")
        self.judge(asked, batch, succeeded, failed, may_be_cancelled=may_be_cancelled)

    def judge(
        self,
        asked: dict[str, str],
        batch: Batch,
        succeeded: list[dict[str, Any]],
        failed: list[dict[str, Any]],
        *,
        may_be_cancelled: bool = False,
    ) -> None:
        """Note in the ledger what a batch that has ended should not have come to."""
        rows = succeeded + failed
        self._check_ids(batch.id, asked, [row["custom_id"] for row in rows])
        if batch.status != "completed" and not (may_be_cancelled and batch.status == "cancelled"):
            self.ledger.accuse("wrong", f"{batch.id} ended as {batch.status}")
        counts = batch.request_counts
        if not counts or (counts.total, counts.completed, counts.failed) != (len(asked), len(succeeded), len(failed)):
            self.ledger.accuse("wrong", f"{batch.id} counts {counts}, and has {len(succeeded)} and {len(failed)} rows")
        for row in rows:
            self._check_row(batch, row, asked.get(row["custom_id"], ""))

    def _check_ids(self, batch_id: str, asked: dict[str, str], got: list[str]) -> None:
        times = Counter(got)
        if lost := len(asked.keys() - times.keys()):
            self.ledger.accuse("lost", f"{lost} requests of {batch_id}", lost)
        if doubled := sum(times.values()) - len(times):
            self.ledger.accuse("doubled", f"{doubled} requests of {batch_id}", doubled)
        if foreign := times.keys() - asked.keys():
            self.ledger.accuse("wrong", f"{batch_id} has what it was not asked for: {foreign}")

    def _check_row(self, batch: Batch, row: dict[str, Any], prompt: str) -> None:
        answer = _answer(row)
        kind = prompt.split(" ", 1)[0]
        if answer == CODES.get(kind, prompt) or (batch.status == "cancelled" and answer == "batch_cancelled"):
            return
        if answer == "engine_crashed" and self._is_explained(batch.id, row["custom_id"]):
            self.ledger.count("rows blamed")
            return
        self.ledger.accuse("wrong", f"{row['custom_id']} of {batch.id}: {answer} for {prompt}")

    def _rows(self, file_id: str | None) -> list[dict[str, Any]]:
        if file_id is None:
            return []
        data = self.patiently(lambda sdk: sdk.files.content(file_id)).content
        self.ledger.read(self.tenant, file_id, data)
        return parse(data)

    def _clear(self, batch: Batch) -> None:
        """Note when results were committed, before some of the files go."""
        self.ledger.committed += self._look_up(COMMITTED, id=batch.id)
        if self._random.random() < INPUT_DELETED:
            self._delete(batch.input_file_id)
            del self.ledger.acknowledged[batch.input_file_id]
        if self._random.random() < RESULTS_DELETED:
            for file_id in filter(None, (batch.output_file_id, batch.error_file_id)):
                self._delete(file_id)
                del self.ledger.downloaded[file_id]

    def _is_explained(self, batch_id: str, custom_id: str) -> bool:
        return self._look_up(EXPLAINED, batch_id=batch_id, custom_id=custom_id) == [True]

    def _look_up(self, statement: TextClause, **values: str) -> list[Any]:
        """Return the first column of what the database has, as soon as it can be asked."""
        while True:
            try:
                with self._work.engine.connect() as connection:
                    return list(connection.execute(statement, values).scalars())
            except SQLAlchemyError:
                if self._work.is_hopeless.wait(0.2):
                    return []

    def _delete(self, file_id: str) -> None:
        try:
            self.patiently(lambda sdk: sdk.files.delete(file_id))
        except NotFoundError:
            self.ledger.count("deleted by a call that got no answer")


def _name(error: APIConnectionError | InternalServerError) -> str:
    if isinstance(error, InternalServerError):
        return f"{error.status_code} {error.code}"
    return "no answer in time" if isinstance(error, APITimeoutError) else "connection broken or refused"


def _answer(row: dict[str, Any]) -> str:
    """Return the text of a row's answer, or its error's code."""
    if row["error"]:
        return str(row["error"]["code"])
    body = row["response"]["body"]
    return str(body["error"]["code"] if "error" in body else body["choices"][0]["message"]["content"])
