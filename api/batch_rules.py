"""What the parameters of a new batch may be. The messages are the contract's. Pure."""

import json
import re
from typing import Any

from jobs import windows
from jobs.batches import MAX_METADATA_PAIRS, NewBatch
from jobs.errors import InvalidRequest
from jobs.protocol import BATCH_ENDPOINTS, BatchCreate

MAX_KEY_CHARS, MAX_VALUE_CHARS = 64, 512
# The pair of a batch's metadata that says which of a project's batches come first.
PRIORITY, MAX_PRIORITY = "promptmill_priority", 100
_JSON_TYPES: list[tuple[type, str]] = [
    (bool, "a boolean"),
    (int, "an integer"),
    (float, "a decimal"),
    (list, "an array"),
    (dict, "an object"),
    (type(None), "null"),
]


def check(asked: BatchCreate, *, any_window: bool) -> NewBatch:
    """Return what is asked for.

    Raises:
        InvalidRequest: a parameter is out of bounds; it is named.
    """
    life = asked.output_expires_after
    metadata = None if asked.metadata is None else _metadata(asked.metadata)
    _unicode("input_file_id", asked.input_file_id)
    _one_of("endpoint", asked.endpoint, BATCH_ENDPOINTS)
    return NewBatch(
        input_file_id=asked.input_file_id,
        endpoint=asked.endpoint,
        completion_window=asked.completion_window,
        window_seconds=windows.seconds(asked.completion_window, any_window=any_window),
        metadata=metadata,
        output_expires_after_seconds=life.seconds if life else None,
        priority=_priority(metadata or {}),
    )


def _priority(metadata: dict[str, str]) -> int:
    """Read the priority of the batch from its metadata, the one place where the stock SDK lets a client put it."""
    text = metadata.get(PRIORITY, "0")
    if not re.fullmatch(r"[+-]?[0-9]{1,3}", text) or abs(int(text)) > MAX_PRIORITY:
        param = f"metadata.{PRIORITY}"
        message = f"Invalid '{param}': expected an integer from -{MAX_PRIORITY} to {MAX_PRIORITY}, as a string."
        raise InvalidRequest(message, param=param, code="invalid_value")
    return int(text)


def _unicode(param: str, text: str) -> None:
    """JSON can spell half a surrogate pair; it can be neither stored nor sent back."""
    try:
        text.encode()
    except UnicodeEncodeError:
        message = f"Invalid '{param}': not valid Unicode."
        raise InvalidRequest(message, param=param, code="invalid_value") from None


def _one_of(param: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        listed = ", ".join(f"'{each}'" for each in allowed)
        message = f"Invalid value: '{value}'. Supported values are: {listed}."
        raise InvalidRequest(message, param=param, code="invalid_value")


def _metadata(metadata: dict[str, Any]) -> dict[str, str]:
    if len(metadata) > MAX_METADATA_PAIRS:
        message = (
            f"Invalid 'metadata': too many properties. Expected at most {MAX_METADATA_PAIRS}, but got {len(metadata)}."
        )
        raise InvalidRequest(message, param="metadata", code="object_above_max_properties")
    _unicode("metadata", json.dumps(metadata, ensure_ascii=False))
    for key, value in metadata.items():
        _pair(key, value)
    return metadata


def _pair(key: str, value: Any) -> None:  # noqa: ANN401  whatever JSON has
    param = f"metadata.{key}"
    if not isinstance(value, str):
        found = next(name for kind, name in _JSON_TYPES if isinstance(value, kind))
        message = f"Invalid type for '{param}': expected a string, but got {found} instead."
        raise InvalidRequest(message, param=param, code="invalid_type")
    if len(key) > MAX_KEY_CHARS or len(value) > MAX_VALUE_CHARS or "\0" in key + value:
        message = (
            f"Invalid '{param}': keys have at most {MAX_KEY_CHARS} characters, values {MAX_VALUE_CHARS}, and no NUL."
        )
        raise InvalidRequest(message, param=param, code="string_above_max_length")
