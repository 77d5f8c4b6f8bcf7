"""Batches, call by call: submit, list, run again, download."""

import itertools
from pathlib import Path
from typing import Any

import msgspec
from openai import OpenAI
from openai.types import Batch

from client import downloads, results
from jobs.errors import InvalidRequest
from jobs.lines import BOM, is_blank
from jobs.states import TERMINAL


class _Url(msgspec.Struct):
    url: str


_decode = msgspec.json.Decoder(_Url).decode


def endpoint_of(path: Path) -> str:
    """Return the `url` of the first line of a file of requests.

    Raises:
        InvalidRequest: it has none.
    """
    with path.open("rb") as file:
        first = next((line for line in file if not is_blank(line)), b"")
    try:
        return _decode(first.removeprefix(BOM)).url
    except msgspec.MsgspecError:
        message = f"The first line of {path} has no url. `promptmill validate {path}` says what is wrong with it."
        raise InvalidRequest(message) from None


def submit(
    sdk: OpenAI,
    path: Path,
    endpoint: str,
    *,
    window: str = "24h",
    metadata: dict[str, str] | None,
    key: str | None = None,
) -> Batch:
    """Upload a file and make a batch of it.

    Args:
        sdk: the server.
        path: a file of requests.
        endpoint: what the batch is for.
        window: its completion window.
        metadata: its metadata.
        key: with it both calls may be repeated: they make one file and one batch.
    """
    headers = _headers(key)
    with path.open("rb") as file:
        uploaded = sdk.files.create(file=(path.name, file), purpose="batch", extra_headers=headers)
    return _create(sdk, uploaded.id, endpoint, window, metadata, headers)


def _headers(key: str | None) -> dict[str, str]:
    return {"Idempotency-Key": key} if key else {}


def _create(
    sdk: OpenAI, file_id: str, endpoint: str, window: str, metadata: dict[str, str] | None, headers: dict[str, str]
) -> Batch:
    # The SDK's types know OpenAI's own endpoints and window only.
    asked: Any = {"input_file_id": file_id, "endpoint": endpoint, "completion_window": window}
    return sdk.batches.create(**asked, metadata=metadata, extra_headers=headers)


def retry(
    sdk: OpenAI,
    batch: Batch,
    *,
    window: str | None = None,
    metadata: dict[str, str] | None = None,
    key: str | None = None,
) -> Batch:
    """Make a batch of the failed requests of another.

    Args:
        sdk: the server.
        batch: the other one.
        window: its completion window; the other one's, if not given.
        metadata: its metadata. The server adds whose requests they are.
        key: with it the call may be repeated: it makes one batch.

    Raises:
        InvalidRequest: it has not ended, or nothing failed.
    """
    if batch.status not in TERMINAL:
        message = f"{batch.id} has not ended: it is {batch.status}."
        raise InvalidRequest(message)
    if batch.error_file_id is None:
        message = f"{batch.id} has no failed requests."
        raise InvalidRequest(message)
    return _create(sdk, batch.error_file_id, batch.endpoint, window or batch.completion_window, metadata, _headers(key))


def newest(sdk: OpenAI, limit: int) -> list[Batch]:
    """Return up to `limit` batches, newest first."""
    return list(itertools.islice(sdk.batches.list(limit=min(limit, 100)), limit))


def result_files(batch: Batch, *, partial: bool) -> dict[str, str]:
    """Return the ids of the output and the error file, those that there are.

    Raises:
        InvalidRequest: the batch has not ended, and `partial` was not asked for.
    """
    if batch.status not in TERMINAL:
        if not partial:
            message = f"{batch.id} is {batch.status}. Wait for it, or take what there is with --partial."
            raise InvalidRequest(message)
        counts = batch.request_counts
        made = {"output": counts and counts.completed, "errors": counts and counts.failed}
        names = {"output": results.output_file(batch), "errors": results.error_file(batch)}
        return {kind: file_id for kind, file_id in names.items() if made[kind]}
    found = {"output": batch.output_file_id, "errors": batch.error_file_id}
    return {kind: file_id for kind, file_id in found.items() if file_id}


def download(sdk: OpenAI, batch: Batch, out: Path, errors: Path | None, *, partial: bool) -> dict[str, Any]:
    """Download both files of a batch; return where they are.

    Raises:
        InvalidRequest: the batch has not ended, or has no results.
        PromptmillError: the connection broke again and again.
    """
    places = {"output": out, "errors": errors or out.with_suffix(f".errors{out.suffix}")}
    files = require_files(batch, partial=partial)
    for kind, file_id in files.items():
        if batch.status in TERMINAL:
            downloads.fetch(sdk, file_id, places[kind])
        else:
            downloads.fetch_partial(sdk, file_id, places[kind])
    return {"batch": batch.id, **{kind: str(places[kind]) for kind in files}}


def require_files(batch: Batch, *, partial: bool) -> dict[str, str]:
    """Return what `result_files` does.

    Raises:
        InvalidRequest: as there, or the batch has no results.
    """
    files = result_files(batch, partial=partial)
    if not files:
        message = f"{batch.id} is {batch.status} and has no results."
        raise InvalidRequest(message)
    return files
