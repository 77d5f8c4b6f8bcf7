"""Runs again what failed: for each part of a finished run a batch of its error file."""

from pathlib import Path

from openai import APIStatusError, NotFoundError, OpenAI

from client import batches, show
from client.presets import state
from client.presets.state import State
from client.presets.submitted import REFUSALS, Submitted, gone, refused


def begin(sdk: OpenAI, out: Path, remembered: State, submitted: list[Submitted]) -> None:
    """Note which parts get another batch. Nothing is submitted, but from here on the run is under way again.

    Raises:
        InvalidRequest: what was answered before is gone, so that the table could not be written.
    """
    for each in submitted:
        for _, file_id in each.files():
            _require_file(sdk, file_id, out)
    for each in submitted:
        if each.retryable:
            remembered.parts[each.part.number - 1].retries.append(None)
    remembered.finished = False
    state.save(out, remembered)


def _require_file(sdk: OpenAI, file_id: str, out: Path) -> None:
    try:
        sdk.files.retrieve(file_id)
    except NotFoundError:
        raise gone(file_id, out) from None


def submit(sdk: OpenAI, out: Path, remembered: State, submitted: list[Submitted]) -> list[Submitted]:
    """Make the batches that are noted and not made yet; return the parts with them. May be called again after a kill.

    Raises:
        InvalidRequest: the server refuses one.
    """
    return [
        _again(sdk, out, remembered, each) if None in remembered.parts[each.part.number - 1].retries else each
        for each in submitted
    ]


def _again(sdk: OpenAI, out: Path, remembered: State, failed: Submitted) -> Submitted:
    own, newest = remembered.parts[failed.part.number - 1], failed.newest
    key = f"promptmill-{remembered.run}-{own.attempt}-{newest.error_file_id}"
    try:
        batch = batches.retry(sdk, newest, window=remembered.window, metadata=state.made_by(out), key=key)
    except APIStatusError as error:
        if error.status_code in REFUSALS:
            _finish_if_nothing_runs(out, remembered)
        raise
    if batch.status == "failed":
        # Nothing ran. The next call asks for another batch: a worker may be there by then.
        own.attempt += 1
        _finish_if_nothing_runs(out, remembered)
        raise refused(batch)
    own.retries[-1] = batch.id
    state.save(out, remembered)
    show.note(f"{batch.id}: {failed.retryable} requests of {newest.id} again")
    return Submitted(failed.part, [*failed.batches, batch])


def _finish_if_nothing_runs(out: Path, remembered: State) -> None:
    """Let the run be as it was before `begin`, unless a batch was made since; save it."""
    last = max(len(part.retries) for part in remembered.parts)
    if all(len(part.retries) < last or part.retries[-1] is None for part in remembered.parts):
        for part in remembered.parts:
            part.retries = [batch for batch in part.retries if batch is not None]
        remembered.finished = True
    state.save(out, remembered)
