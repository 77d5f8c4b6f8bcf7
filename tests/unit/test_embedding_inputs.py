import json
from typing import Any

import pytest

from jobs import embedding_inputs, lines


def count(given: Any, url: str = "/v1/embeddings") -> int:
    body = {"model": "m", "input": given}
    content = json.dumps({"custom_id": "a", "method": "POST", "url": url, "body": body}, indent=1).encode()
    return embedding_inputs.count(lines.parse(content, max_custom_id_chars=64))


@pytest.mark.parametrize(
    ("given", "inputs"),
    [
        ("text", 1),
        ("", 1),
        (["a", "b", "c"], 3),
        ([1, 2, 3], 1),
        ([[1, 2], [3]], 2),
        ([], 1),
        ({"no": "input"}, 1),
    ],
)
def test_inputs_are_counted(given: Any, inputs: int) -> None:
    assert count(given) == inputs


def test_other_endpoints_embed_nothing() -> None:
    assert count(["a", "b"], url="/v1/responses") == 0
