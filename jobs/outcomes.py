"""What one request came to, and the line of the output or error file that says so. Pure.

Line shapes: the Batch API's guide. A reply of the engine that is not 2xx goes to the error file with its body in
`response`; a request that never ran has `response: null` and says why in `error`.
"""

from typing import Any, Literal

import msgspec

from jobs import ids

# Codes of ours for rows that the engine did not answer.
NeverRan = Literal["batch_expired", "batch_cancelled"]
NEVER_RAN: dict[str, str] = {
    "batch_expired": "This request could not be executed before the completion window expired.",
    "batch_cancelled": "This request was not executed because the batch was cancelled.",
}

_encode = msgspec.json.Encoder().encode


class TokenCounts(msgspec.Struct, frozen=True):
    """Tokens of one request, as its response's `usage` has them."""

    input: int = 0
    cached: int = 0
    output: int = 0
    reasoning: int = 0


class Outcome(msgspec.Struct, frozen=True):
    """The one outcome of one request. `content` is its line in the output or error file."""

    line_no: int
    is_error: bool
    status_code: int
    code: str | None
    content: bytes
    tokens: TokenCounts = TokenCounts()


def success(line_no: int, custom_id: str, body: dict[str, Any]) -> Outcome:
    """Return the outcome of a request that the engine answered with `body`."""
    content = _line(custom_id, 200, body)
    return Outcome(line_no, is_error=False, status_code=200, code=None, content=content, tokens=count_tokens(body))


def failure(
    line_no: int, custom_id: str, *, status_code: int, message: str, code: str | None = None, param: str | None = None
) -> Outcome:
    """Return the outcome of a request that failed alone."""
    kind = "invalid_request_error" if status_code < 500 else "server_error"
    body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    content = _line(custom_id, status_code, body)
    return Outcome(line_no, is_error=True, status_code=status_code, code=code or kind, content=content)


def _line(custom_id: str, status_code: int, body: dict[str, Any]) -> bytes:
    row_id = ids.new_request_id()
    line = {
        "id": row_id,
        "custom_id": custom_id,
        "response": {"status_code": status_code, "request_id": row_id.removeprefix("batch_"), "body": body},
        "error": None,
    }
    return _encode(line) + b"\n"


def count_tokens(body: dict[str, Any]) -> TokenCounts:
    """Return what a response's `usage` says, whichever endpoint's words it uses.

    Chat, completions and embeddings say `prompt_tokens`; responses and messages say `input_tokens`, which in messages
    leaves out those that were read from a cache or written to one.
    """
    usage = body.get("usage") or {}
    read, written = (usage.get(f"cache_{kind}_input_tokens") or 0 for kind in ("read", "creation"))
    input_details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
    output_details = usage.get("completion_tokens_details") or usage.get("output_tokens_details") or {}
    return TokenCounts(
        input=(usage.get("prompt_tokens") or usage.get("input_tokens") or 0) + read + written,
        cached=input_details.get("cached_tokens") or read,
        output=usage.get("completion_tokens") or usage.get("output_tokens") or 0,
        reasoning=output_details.get("reasoning_tokens") or output_details.get("thinking_tokens") or 0,
    )
