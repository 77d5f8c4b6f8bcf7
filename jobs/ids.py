"""Identifiers: one id space, 128 random bits each, so that an id cannot be guessed. Ids of outcomes open nothing.

The output and error file of a batch are named after it, `file-<batch>-output` and `file-<batch>-error`:
publishing them twice gives the same file, and they can be read before the batch has ended.

Batch `batch_<digits>` is `msgbatch_<digits>` where Anthropic's API is served.
"""

import random
import re
import secrets
from typing import Literal

ResultKind = Literal["output", "error"]
RESULT_KINDS: tuple[ResultKind, ...] = ("output", "error")
BATCH_PREFIX, MESSAGE_BATCH_PREFIX = "batch_", "msgbatch_"
_MESSAGE_BATCH = re.compile(f"{MESSAGE_BATCH_PREFIX}([0-9a-f]{{32}})")
_RESULT_FILE = re.compile(r"file-([0-9a-f]{32})-(output|error)")


_ID = re.compile(r"(batch_|msgbatch_|file-|upload_|part_|wh_)[0-9a-f]{32}(-output|-error)?")


def is_id(words: object) -> bool:
    """Tell whether this has the form of an id of ours, so that it can hold no words of a client."""
    return isinstance(words, str) and _ID.fullmatch(words) is not None


def new_file_id() -> str:
    return f"file-{secrets.token_hex(16)}"


def new_upload_id() -> str:
    return f"upload_{secrets.token_hex(16)}"


def new_part_id() -> str:
    return f"part_{secrets.token_hex(16)}"


def new_batch_id() -> str:
    return f"{BATCH_PREFIX}{secrets.token_hex(16)}"


def new_shard_id() -> str:
    return f"shard_{secrets.token_hex(16)}"


def new_worker_id() -> str:
    return f"worker_{secrets.token_hex(8)}"


def new_project_id() -> str:
    return f"proj_{secrets.token_hex(8)}"


def new_request_id() -> str:
    # One for each row: asking the kernel would let go of Python's lock each time, for other threads to take.
    return f"batch_req_{random.getrandbits(128):032x}"


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


def message_batch_id(batch_id: str) -> str:
    """Return the name of a batch as a message batch."""
    return MESSAGE_BATCH_PREFIX + batch_id.removeprefix(BATCH_PREFIX)


def parse_message_batch_id(message_batch_id: str) -> str | None:
    """Return the batch id, or None when the id cannot be a message batch's."""
    match = _MESSAGE_BATCH.fullmatch(message_batch_id)
    return f"{BATCH_PREFIX}{match[1]}" if match else None
