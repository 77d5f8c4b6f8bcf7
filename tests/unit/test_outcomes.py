import json
from typing import Any

import pytest

from jobs import outcomes


def test_an_answer_goes_to_the_output_file() -> None:
    usage = {
        "prompt_tokens": 5,
        "completion_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 3},
        "completion_tokens_details": {"reasoning_tokens": 2},
    }
    outcome = outcomes.success(4, "id-é", {"id": "x", "usage": usage})
    line = json.loads(outcome.content)
    assert outcome.content.endswith(b"\n")
    assert list(line) == ["id", "custom_id", "response", "error"]
    assert line["id"].startswith("batch_req_")
    assert line["custom_id"] == "id-é"
    assert line["response"]["status_code"] == 200
    assert line["response"]["body"]["id"] == "x"
    assert line["error"] is None
    assert not outcome.is_error
    assert outcome.tokens == outcomes.TokenCounts(input=5, cached=3, output=7, reasoning=2)


def test_a_refusal_goes_to_the_error_file_with_its_body_in_response() -> None:
    outcome = outcomes.failure(4, "a", status_code=400, message="no", code="bad", param="n")
    line = json.loads(outcome.content)
    assert outcome.is_error
    assert line["error"] is None
    assert line["response"]["status_code"] == 400
    assert line["response"]["body"] == {
        "error": {"message": "no", "type": "invalid_request_error", "param": "n", "code": "bad"}
    }


def test_an_answer_without_usage_counts_nothing() -> None:
    assert outcomes.success(1, "a", {"usage": None}).tokens == outcomes.TokenCounts()


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        ({"prompt_tokens": 5, "total_tokens": 5}, outcomes.TokenCounts(input=5)),
        (
            {
                "input_tokens": 5,
                "input_tokens_details": {"cached_tokens": 3, "cache_write_tokens": 0},
                "output_tokens": 7,
                "output_tokens_details": {"reasoning_tokens": 2},
                "total_tokens": 12,
            },
            outcomes.TokenCounts(input=5, cached=3, output=7, reasoning=2),
        ),
        (
            {
                "input_tokens": 2,
                "cache_read_input_tokens": 3,
                "cache_creation_input_tokens": 4,
                "output_tokens": 7,
                "output_tokens_details": {"thinking_tokens": 2},
            },
            outcomes.TokenCounts(input=9, cached=3, output=7, reasoning=2),
        ),
        (
            {"input_tokens": 2, "cache_read_input_tokens": None, "output_tokens": 7, "output_tokens_details": None},
            outcomes.TokenCounts(input=2, output=7),
        ),
    ],
    ids=["embeddings", "responses", "messages", "messages without a cache"],
)
def test_tokens_are_counted_in_the_words_of_each_endpoint(usage: dict[str, Any], counts: outcomes.TokenCounts) -> None:
    assert outcomes.success(1, "a", {"usage": usage}).tokens == counts
