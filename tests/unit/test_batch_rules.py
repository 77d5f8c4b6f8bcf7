from typing import Any

import pytest

from api import batch_rules
from jobs.batches import NewBatch
from jobs.errors import InvalidRequest
from jobs.protocol import BatchCreate


def asked(**changes: Any) -> BatchCreate:
    values = {"input_file_id": "file-1", "endpoint": "/v1/chat/completions", "completion_window": "24h", **changes}
    return BatchCreate.model_validate(values)


def check(body: BatchCreate) -> NewBatch:
    return batch_rules.check(body, any_window=False)


def test_what_fits_is_taken() -> None:
    new = check(asked(metadata={"a": "b"}, output_expires_after={"anchor": "created_at", "seconds": 3600}))
    assert (new.metadata, new.output_expires_after_seconds) == ({"a": "b"}, 3600)


@pytest.mark.parametrize(
    ("changes", "param", "code"),
    [
        ({"endpoint": "/v1/images"}, "endpoint", "invalid_value"),
        ({"completion_window": "48h"}, "completion_window", "invalid_value"),
        ({"completion_window": ""}, "completion_window", "invalid_value"),
        ({"metadata": {"tags": ["a"]}}, "metadata.tags", "invalid_type"),
        ({"metadata": {"n": None}}, "metadata.n", "invalid_type"),
        ({"metadata": {"k": "\ud800"}}, "metadata", "invalid_value"),
        ({"metadata": {"promptmill_priority": "high"}}, "metadata.promptmill_priority", "invalid_value"),
        ({"metadata": {"promptmill_priority": "101"}}, "metadata.promptmill_priority", "invalid_value"),
        ({"metadata": {"k" * 65: "v"}}, f"metadata.{'k' * 65}", "string_above_max_length"),
        ({"metadata": {"k": "v" * 513}}, "metadata.k", "string_above_max_length"),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata", "object_above_max_properties"),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check(asked(**changes))
    assert (caught.value.param, caught.value.code) == (param, code)


@pytest.mark.parametrize(("text", "priority"), [("10", 10), ("-100", -100), ("+1", 1)])
def test_the_priority_is_read_from_the_metadata(text: str, priority: int) -> None:
    assert check(asked(metadata={"promptmill_priority": text})).priority == priority
    assert check(asked()).priority == 0


def test_the_wording_is_the_contracts() -> None:
    with pytest.raises(InvalidRequest) as caught:
        check(asked(metadata={"tags": ["a"]}))
    assert caught.value.message == "Invalid type for 'metadata.tags': expected a string, but got an array instead."
