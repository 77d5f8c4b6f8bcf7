"""What vLLM says is wrong, in our words."""

from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError, field_validator

from jobs.protocol import CHAT, COMPLETIONS, EMBEDDINGS
from workers.engines import vllm_errors


class Config(BaseModel):
    """As vLLM checks its configuration."""

    model: str

    @field_validator("model")
    @classmethod
    def _is_there(cls, _: str) -> str:
        message = "No such model.\nPlease verify:\n1. this\n2. that"
        raise ValueError(message)


def invalid_config() -> ValidationError:
    with pytest.raises(ValidationError) as caught:
        Config(model="x")
    return caught.value


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (invalid_config(), "No such model."),
        (OSError("no disk\nmore"), "no disk"),
        (KeyError("\n"), "KeyError '\\n'"),
        (ValueError(), "ValueError "),
        (SystemExit(2), "it does not take these arguments"),
        (RuntimeError("Engine core initialization failed. See root cause above."), "its engine core did not start"),
    ],
)
def test_the_reason_is_one_line(error: BaseException, words: str) -> None:
    reason = vllm_errors.reason(error)
    assert reason.startswith(words)
    assert len(reason.splitlines()) == 1


def answer(message: str, code: int, param: str | None = None) -> Any:
    return SimpleNamespace(error=SimpleNamespace(message=message, code=code, param=param))


def test_what_is_not_the_requests_fault_is_told_in_no_detail() -> None:
    error = vllm_errors.rejection(answer("CUDA error in /usr/lib/secret.py", 501), CHAT)
    assert (error.status_code, error.code, error.param) == (500, "engine_error", None)
    assert error.message == "The engine failed on this request."


@pytest.mark.parametrize(
    ("endpoint", "message", "given", "param"),
    [
        (EMBEDDINGS, "Model 'x' does not support Matryoshka embeddings; dimensions must be unset", None, "dimensions"),
        (COMPLETIONS, "too many dimensions", None, None),
        (CHAT, "no", "top_k", "top_k"),
    ],
)
def test_a_parameter_is_named(endpoint: str, message: str, given: str | None, param: str | None) -> None:
    assert vllm_errors.rejection(answer(message, 400, given), endpoint).param == param
    refused = ValueError(message)
    refused.parameter = given  # type: ignore[attr-defined]
    error = vllm_errors.invalid(refused, endpoint, 512)
    assert (error.param, error.code, error.message) == (param, "invalid_value", message)


class TemplateError(Exception):
    """As jinja2 has it."""


class Raised(TemplateError):
    """A kind of it."""


def test_what_a_chat_template_refuses_is_in_the_prompt() -> None:
    error = ValueError("roles must alternate")
    assert vllm_errors.blamed_template(error, CHAT) is None
    error.__cause__ = Raised()
    assert vllm_errors.blamed_template(error, CHAT) == "messages"


@pytest.mark.parametrize(("parameter", "words"), [("input_tokens", "at least 513 tokens"), ("input_text", "513 char")])
def test_a_prompt_that_is_too_long_has_its_numbers(parameter: str, words: str) -> None:
    error = vllm_errors.invalid(SimpleNamespace(parameter=parameter, value=513, args=["no"]), COMPLETIONS, 512)
    assert (error.code, error.param) == ("context_length_exceeded", "prompt")
    assert words in error.message and "512" in error.message
