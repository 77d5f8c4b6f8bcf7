"""Runs a preset: render, submit, watch, download, write. The same call again goes on where the last one ended."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn, Self

import msgspec
from openai import APIStatusError, NotFoundError, OpenAI
from openai.types import Batch

from client import batches, downloads, results, show, tables, watching, writing
from client.presets import parts, retries, state
from client.presets.job import CHAT, Answer, Body, Job, answer, custom_id
from client.presets.parts import Part
from client.presets.state import PartState, State
from client.presets.submitted import REFUSALS, Submitted, changed, refused, retrieve
from client.results import Results
from client.tables import Table
from jobs.errors import ConfigurationError, InvalidRequest
from jobs.settings import Limits
from jobs.states import TERMINAL


@dataclass(frozen=True)
class Outcome:
    """What came of a run."""

    out: str
    rows: int
    failed_rows: int
    failures_by_code: dict[str, int]
    batches: list[str]
    retryable_requests: int
    """Requests that failed and can be run again."""


def run(
    sdk: OpenAI,
    table: Table,
    out: Path,
    make_job: Callable[[str], Job],
    remembered: State,
    rows_per_batch: int | None,
) -> Outcome:
    """Write `out`: the table, and the columns of the job.

    What the run kept beside it is gone afterwards, but its state if requests failed: a run that is finished runs those
    again, and lays their answers over the ones before.

    The caller holds the lock of the output (`state.locked`).

    Args:
        sdk: the server.
        table: what is read.
        out: what is written.
        make_job: makes the job for a model.
        remembered: the state of the run; a new one, the one that was interrupted, or one that is finished.
        rows_per_batch: most requests of a batch; None for what the Batch API allows.

    Raises:
        InvalidRequest: the input changed meanwhile or is not as it was when the run began, a batch of the run is
            gone, or the server refuses one.
        PromptmillError: the server is away for too long.
    """
    job = make_job(remembered.model)
    digest = _digest(table)
    submitted = _submit_all(sdk, table, job, out, remembered, rows_per_batch or Limits().max_requests)
    # Only now: nothing is run again for a table that is another one.
    if remembered.finished:
        retries.begin(sdk, out, remembered, submitted)
    submitted = _watch(sdk, retries.submit(sdk, out, remembered, submitted))
    outcome = _write(sdk, table, digest, job, out, submitted)
    if outcome.retryable_requests:
        state.keep(out, remembered, outcome.failed_rows)
    else:
        state.forget(out)
    return outcome


def _watch(sdk: OpenAI, submitted: list[Submitted]) -> list[Submitted]:
    """Watch the batches that were made last until they have ended: of parts without failures there are none."""
    last = max((len(each.batches) for each in submitted), default=0)
    watched = [each.newest for each in submitted if len(each.batches) == last]
    ended = {batch.id: batch for batch in (watching.watch(sdk, watched, show.err)[0] if watched else ())}
    return [Submitted(each.part, [ended.get(batch.id, batch) for batch in each.batches]) for each in submitted]


def _digest(table: Table) -> str:
    with table.path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def requests(table: Table, job: Job) -> Iterator[parts.Row]:
    """Yield each row of the table with its requests, as lines of a file.

    Raises:
        InvalidRequest: a row cannot be read, or its prompt cannot be made.
    """
    for number, bodies in rendered(table, job):
        yield number, [_line(custom_id(number, variant), body) for variant, body in bodies]


def rendered(table: Table, job: Job) -> Iterator[tuple[int, list[tuple[str, Body]]]]:
    """Yield the number of each row, from 1, and what is asked about it in each variant; nothing about one without text.

    Raises:
        InvalidRequest: a row cannot be read, or its prompt cannot be made.
    """
    place = table.columns.index(job.column)
    number = 0
    for block in tables.blocks(table):
        for row in block.rows:
            number += 1
            yield number, _bodies(job, number, tables.cell_text(row[place]), dict(zip(table.columns, row, strict=True)))


def _bodies(job: Job, number: int, text: str, row: dict[str, Any]) -> list[tuple[str, Body]]:
    if not text.strip():
        return []
    try:
        return [(variant, job.body(text, row, variant)) for variant in job.variants]
    except InvalidRequest as error:
        raise InvalidRequest(f"Row {number}: {error.message}") from error


def _line(name: str, body: Body) -> bytes:
    return msgspec.json.encode({"custom_id": name, "method": "POST", "url": CHAT, "body": body}) + b"\n"


def _submit_all(
    sdk: OpenAI, table: Table, job: Job, out: Path, remembered: State, max_requests: int
) -> list[Submitted]:
    """Make the batches that are not made yet, each as soon as its part is rendered: the first one runs meanwhile."""
    cut = parts.cut(
        requests(table, job), state.folder(out), max_requests=max_requests, max_bytes=Limits().max_file_bytes
    )
    made = []
    for part in cut:
        made.append(Submitted(part, _submit(sdk, part, out, remembered)))
        part.path.unlink()
    if len(made) != len(remembered.parts):
        raise changed(out)
    return made


def _submit(sdk: OpenAI, part: Part, out: Path, remembered: State) -> list[Batch]:
    if part.number > len(remembered.parts):
        if remembered.finished:
            raise changed(out)
        remembered.parts.append(PartState(part.sha256))
    own = remembered.parts[part.number - 1]
    if own.sha256 != part.sha256:
        raise changed(out)
    if own.batch is not None:
        return [retrieve(sdk, batch_id, out) for batch_id in own.made()]
    state.save(out, remembered)
    key = f"promptmill-{remembered.run}-{own.attempt}-{part.sha256}"
    try:
        batch = batches.submit(sdk, part.path, CHAT, window=remembered.window, metadata=state.made_by(out), key=key)
    except APIStatusError as error:
        if error.status_code in REFUSALS:
            _forget_if_nothing_runs(out, remembered)
        raise
    if batch.status == "failed":
        # Nothing ran. The next run asks for another batch: a worker may be there by then.
        own.attempt += 1
        state.save(out, remembered)
        _forget_if_nothing_runs(out, remembered)
        raise refused(batch)
    own.batch = batch.id
    state.save(out, remembered)
    show.note(f"{batch.id}: {part.requests} requests")
    return [batch]


def _forget_if_nothing_runs(out: Path, remembered: State) -> None:
    """Let the corrected command begin anew, which would be other options for a run that goes on."""
    if all(part.batch is None for part in remembered.parts):
        state.forget(out)


def restart(sdk: OpenAI, out: Path) -> None:
    """Forget the interrupted run for an output; its batches are cancelled. The caller holds the lock of the output.

    One that is finished is remembered until a new one begins.
    """
    # A state that cannot be read names no batches.
    with suppress(ConfigurationError):
        remembered = state.load(out)
        if remembered and remembered.finished:
            return
        for part in remembered.parts if remembered else ():
            for batch_id in part.made():
                _cancel(sdk, batch_id)
    state.forget(out)


def _cancel(sdk: OpenAI, batch_id: str) -> None:
    """Cancel a batch that has not ended. One that the server does not know is another server's, or gone."""
    with suppress(NotFoundError):
        if sdk.batches.retrieve(batch_id).status not in TERMINAL:
            sdk.batches.cancel(batch_id)


def _write(sdk: OpenAI, table: Table, digest: str, job: Job, out: Path, submitted: list[Submitted]) -> Outcome:
    """Write the table that was rendered: one that changed meanwhile would get the answers of other rows."""
    codes: Counter[str] = Counter()
    rows = failed = 0
    place = table.columns.index(job.column)
    _require_same(table, digest, out)
    with _Lookup(sdk, out, submitted) as lookup:

        def values(number: int, row: list[Any]) -> list[Any]:
            nonlocal rows, failed
            rows = number
            if not tables.cell_text(row[place]).strip():
                return [None] * len(job.added)
            answers = [answer(job, lookup.find(number, custom_id(number, variant))) for variant in job.variants]
            codes.update(each.failure.code for each in answers if each.failure)
            failed += any(each.failure for each in answers)
            return [*chain.from_iterable(each.values for each in answers), _errors(job, answers)]

        filled = writing.fill(table, len(job.added), values)
        writing.write(table, out, job.added, chain(filled, _then_require_same(table, digest, out)))
    return Outcome(
        str(out),
        rows,
        failed,
        dict(codes),
        [batch.id for each in submitted for batch in each.batches],
        sum(each.retryable for each in submitted),
    )


def _require_same(table: Table, digest: str, out: Path) -> None:
    if _digest(table) != digest:
        raise changed(out)


def _then_require_same(table: Table, digest: str, out: Path) -> Iterator[NoReturn]:
    """Yield nothing. What comes last among the blocks is looked at before the file is in its place."""
    _require_same(table, digest, out)
    yield from ()


def _errors(job: Job, answers: list[Answer]) -> str | None:
    texts = [
        (f"{variant}: " if len(job.variants) > 1 else "") + f"{each.failure.code}: {each.failure.message}"
        for variant, each in zip(job.variants, answers, strict=True)
        if each.failure
    ]
    return "; ".join(texts) or None


class _Lookup:
    """Results by row, in order. One part's files are here at a time."""

    def __init__(self, sdk: OpenAI, out: Path, submitted: list[Submitted]) -> None:
        self._sdk, self._out, self._left = sdk, out, iter(submitted)
        self._last_row = 0
        self._closing = ExitStack()
        self._results: Results | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def find(self, row: int, name: str) -> dict[str, Any] | None:
        """Return the line of a request; rows may not go back."""
        while row > self._last_row:
            if (following := next(self._left, None)) is None:
                raise changed(self._out)
            self._open(following)
        assert self._results
        return self._results.find(name)

    def _open(self, submitted: Submitted) -> None:
        self._closing.close()
        paths = []
        for name, file_id in submitted.files():
            paths.append(state.folder(self._out) / name)
            if not paths[-1].exists():
                downloads.fetch(self._sdk, file_id, paths[-1])
        self._results = self._closing.enter_context(results.opened(paths))
        for path in paths:
            self._closing.callback(path.unlink, missing_ok=True)
        self._last_row = submitted.part.last_row
