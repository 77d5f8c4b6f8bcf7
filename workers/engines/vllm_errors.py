"""What vLLM says is wrong, in words and names for a client or an operator. Pure."""

from typing import Any

from pydantic import ValidationError

from jobs.errors import RequestRejected
from jobs.protocol import EMBEDDINGS
from workers.engines.base import PROMPT_OF

MAX_CHARS = 500

_CORE_DIED = "engine core initialization failed"


def reason(error: BaseException) -> str:
    """Return in one line why vLLM did not start, or where it says so."""
    if isinstance(error, SystemExit):
        return "it does not take these arguments. Its own words are above."
    words = error.errors()[0]["msg"].removeprefix("Value error, ") if isinstance(error, ValidationError) else str(error)
    if _CORE_DIED in words.lower():
        return "its engine core did not start. The reason is above, in lines of `EngineCore` or `Worker`."
    line = next(iter(words.strip().splitlines()), "")
    # Others are no sentences: the words of a KeyError are the key.
    return line if line and isinstance(error, ValueError | OSError | RuntimeError) else f"{type(error).__name__} {line}"


def rejection(answer: Any, endpoint: str) -> RequestRejected:
    """Return the error of one request that vLLM answered with its `ErrorResponse`.

    What is not the request's fault is told in no detail: those words are about vLLM's inside.
    """
    error, status = answer.error, int(answer.error.code)
    if status >= 500:
        return RequestRejected("The engine failed on this request.", status_code=500, code="engine_error")
    param = error.param or _blamed(error.message, endpoint)
    return RequestRejected(error.message[:MAX_CHARS], status_code=status, code="invalid_value", param=param)


def invalid(error: Any, endpoint: str, context: int) -> RequestRejected:
    """Say what vLLM's front end found. It stops counting where the context ends, and far beyond does not begin to."""
    if error.parameter not in ("input_tokens", "input_text"):
        param = error.parameter or blamed_template(error, endpoint) or _blamed(error.args[0], endpoint)
        return RequestRejected(error.args[0][:MAX_CHARS], code="invalid_value", param=param)
    found = f"at least {error.value} tokens" if error.parameter == "input_tokens" else f"{error.value} characters"
    return too_long(f"This model's context holds {context} tokens. The prompt has {found}.", endpoint)


def too_long(message: str, endpoint: str) -> RequestRejected:
    """Return the error of a request that does not fit into the context."""
    return RequestRejected(message, code="context_length_exceeded", param=PROMPT_OF[endpoint])


def blamed_template(error: BaseException, endpoint: str) -> str | None:
    """Return the parameter that a chat template refused, if one did. Gemma's wants roles to alternate."""
    kinds = [kind.__name__ for each in (error, error.__cause__) for kind in type(each).__mro__]
    return PROMPT_OF[endpoint] if "TemplateError" in kinds else None


def _blamed(words: str, endpoint: str) -> str | None:
    return "dimensions" if endpoint == EMBEDDINGS and "dimensions" in words else None
