"""Identifiers: one id space, 128 random bits each, so that an id cannot be guessed.

The output and error file of a batch are named after it, `file-<batch>-output` and `file-<batch>-error`:
publishing them twice gives the same file, and they can be read before the batch has ended.
"""

import re
import secrets
from typing import Literal

ResultKind = Literal["output", "error"]
RESULT_KINDS: tuple[ResultKind, ...] = ("output", "error")
_RESULT_FILE = re.compile(r"file-([0-9a-f]{32})-(output|error)")


def new_file_id() -> str:
    return f"file-{secrets.token_hex(16)}"


def new_upload_id() -> str:
    return f"upload_{secrets.token_hex(16)}"


def new_part_id() -> str:
    return f"part_{secrets.token_hex(16)}"


def new_batch_id() -> str:
    return f"batch_{secrets.token_hex(16)}"


def new_shard_id() -> str:
    return f"shard_{secrets.token_hex(16)}"


def new_worker_id() -> str:
    return f"worker_{secrets.token_hex(8)}"


def new_project_id() -> str:
    return f"proj_{secrets.token_hex(8)}"


def new_request_id() -> str:
    return f"batch_req_{secrets.token_hex(16)}"


def new_webhook_endpoint_id() -> str:
    return f"wh_{secrets.token_hex(16)}"


def new_call_id() -> str:
    return f"req_{secrets.token_hex(16)}"


def result_file_id(batch_id: str, kind: ResultKind) -> str:
    """Return the id of the output or error file of a batch, whether or not it exists yet."""
    return f"file-{batch_id.removeprefix('batch_')}-{kind}"


def parse_result_file_id(file_id: str) -> tuple[str, ResultKind] | None:
    """Return (batch id, kind) when the id names an output or error file, else None."""
    if not (match := _RESULT_FILE.fullmatch(file_id)):
        return None
    return f"batch_{match[1]}", "output" if match[2] == "output" else "error"
