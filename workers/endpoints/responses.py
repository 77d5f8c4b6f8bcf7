"""`/v1/responses` in terms of chat completions: stateless; text and images in, text and JSON out. Pure.

Names and shapes: the OpenAI API reference, openai-python `types/responses`. What needs a memory (earlier responses,
conversations, stored prompts, background runs) and tools are not in the list, so they are refused by name.
"""

import secrets
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from jobs import outcomes
from workers.engines.base import Body
from workers.engines.parameters import check_alternative, without_null
from workers.engines.strict import Strict

LOGPROBS = "message.output_text.logprobs"
_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


class Part(Strict):
    """Text or an image; `output_text` is part of an earlier answer."""

    type: Literal["input_text", "output_text", "input_image"]
    text: str | None = None
    image_url: str | None = None
    file_id: str | None = None
    detail: Literal["low", "high", "auto"] | None = None
    # An earlier answer may be sent as it came.
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> "Part":
        if self.type != "input_image":
            check_alternative(self, "text", "image_url")
            check_alternative(self, "text", "file_id")
        elif self.file_id is None:
            check_alternative(self, "image_url", "text")
        else:
            check_alternative(self, "file_id", "text")
            check_alternative(self, "file_id", "image_url")
        return self


class Item(Strict):
    """One turn."""

    type: Literal["message"] | None = None
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[Part], Field(min_length=1)]
    # An earlier answer may be sent as it came.
    id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None
    phase: Literal["commentary", "final_answer"] | None = None


class Format(Strict):
    """The form of the answer; for `json_schema`, name and schema stand beside the type."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    strict: bool | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")

    @model_validator(mode="after")
    def _schema_is_there(self) -> "Format":
        if self.type == "json_schema" and self.schema_ is None:
            message = "schema is missing"
            raise ValueError(message)
        return self


class Text(Strict):
    """What the text of the answer is like."""

    format: Format | None = None


class ResponsesParameters(Strict):
    """`/v1/responses`."""

    model: str
    input: Annotated[str, Field(min_length=1)] | Annotated[list[Item], Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1, le=1_000_000)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    text: Text | None = None
    include: list[Literal["message.output_text.logprobs"]] | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    # What is done anyhow.
    background: Literal[False] | None = None
    store: Literal[False] | None = None
    stream: Literal[False] | None = None
    truncation: Literal["disabled"] | None = None
    # Without effect here; clients send them all the same.
    metadata: dict[str, str] | None = None
    parallel_tool_calls: bool | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    user: str | None = None


def to_chat(asked: ResponsesParameters) -> Body:
    """Return the chat completion that gives the same answer."""
    system = [{"role": "system", "content": asked.instructions}] if asked.instructions else []
    with_logprobs = bool(asked.include)
    body = {
        "model": asked.model,
        "messages": [*system, *_turns(asked.input)],
        "max_completion_tokens": asked.max_output_tokens,
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "response_format": _response_format(asked.text.format if asked.text else None),
        "logprobs": with_logprobs or None,
        "top_logprobs": asked.top_logprobs if with_logprobs else None,
    }
    return without_null(body)


def _turns(given: str | list[Item]) -> list[Body]:
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    return [
        {
            "role": item.role,
            "content": item.content if isinstance(item.content, str) else [_part(part) for part in item.content],
        }
        for item in given
    ]


def _part(part: Part) -> Body:
    if part.type != "input_image":
        return {"type": "text", "text": part.text}
    image = {"url": part.image_url, "file_id": part.file_id, "detail": part.detail}
    return {"type": "image_url", "image_url": without_null(image)}


def _response_format(form: Format | None) -> Body | None:
    if form is None or form.type == "text":
        return None
    if form.type == "json_object":
        return {"type": "json_object"}
    # The engine bounds the schema, as it does for chat.
    return {"type": "json_schema", "json_schema": form.model_dump(by_alias=True, exclude={"type"}, exclude_none=True)}


def names(asked: ResponsesParameters) -> Mapping[str, str]:
    """Map names of the chat completion's parameters to the client's."""
    known = {
        "messages": "input",
        "max_completion_tokens": "max_output_tokens",
        "response_format": "text.format",
        "response_format.json_schema": "text.format",
        "logprobs": "include",
    }
    offset = 1 if asked.instructions else 0
    if offset:
        known["messages.0"] = "instructions"
    if isinstance(asked.input, str):
        return known | {f"messages.{offset}": "input"}
    for number, item in enumerate(asked.input):
        known |= _names_in(f"messages.{number + offset}", f"input.{number}", item)
    return known


def _names_in(engines: str, clients: str, item: Item) -> Mapping[str, str]:
    """Map the names of one turn; what chat has in `image_url` stands in the part itself."""
    known = {engines: clients}
    for number, part in enumerate(item.content):
        if isinstance(part, Part) and part.type == "input_image":
            engines_part, clients_part = f"{engines}.content.{number}", f"{clients}.content.{number}"
            known[f"{engines_part}.image_url"] = clients_part
            known[f"{engines_part}.image_url.url"] = f"{clients_part}.image_url"
    return known


def from_chat(asked: ResponsesParameters, answer: Body) -> Body:
    """Return the Response that a chat completion answers."""
    choice = answer["choices"][0]
    reason = _INCOMPLETE.get(choice["finish_reason"])
    status = "incomplete" if reason else "completed"
    return {
        "id": f"resp_{secrets.token_hex(16)}",
        "object": "response",
        "created_at": answer["created"],
        "status": status,
        "error": None,
        "incomplete_details": {"reason": reason} if reason else None,
        "model": answer["model"],
        "output": [_message(choice, status)],
        "usage": _usage(answer),
        **_echo(asked),
    }


def _message(choice: Body, status: str) -> Body:
    text = {
        "type": "output_text",
        "text": choice["message"].get("content") or "",
        "annotations": [],
        "logprobs": [_logprob(token) for token in (choice.get("logprobs") or {}).get("content") or ()],
    }
    return {
        "id": f"msg_{secrets.token_hex(16)}",
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": [text],
    }


def _logprob(token: Body) -> Body:
    tops = {"top_logprobs": [_logprob(top) for top in token["top_logprobs"]]} if "top_logprobs" in token else {}
    code = token.get("bytes") or list(token["token"].encode())
    return {"token": token["token"], "bytes": code, "logprob": token["logprob"], **tops}


def _usage(answer: Body) -> Body:
    counts = outcomes.count_tokens(answer)
    return {
        "input_tokens": counts.input,
        "input_tokens_details": {"cached_tokens": counts.cached, "cache_write_tokens": 0},
        "output_tokens": counts.output,
        "output_tokens_details": {"reasoning_tokens": counts.reasoning},
        "total_tokens": counts.input + counts.output,
    }


def _echo(asked: ResponsesParameters) -> Body:
    """Return what was asked for; a Response repeats it. Null where the engine's own default held."""
    form = asked.text.format if asked.text and asked.text.format else Format(type="text")
    return {
        "background": False,
        "instructions": asked.instructions,
        "max_output_tokens": asked.max_output_tokens,
        "max_tool_calls": None,
        "metadata": asked.metadata or {},
        "parallel_tool_calls": asked.parallel_tool_calls is not False,
        "previous_response_id": None,
        "prompt_cache_key": asked.prompt_cache_key,
        "reasoning": {"effort": None, "summary": None},
        "safety_identifier": asked.safety_identifier,
        "service_tier": "default",
        "temperature": asked.temperature,
        "text": {"format": form.model_dump(by_alias=True, exclude_none=True)},
        "tool_choice": "auto",
        "tools": [],
        "top_logprobs": asked.top_logprobs or 0,
        "top_p": asked.top_p,
        "truncation": "disabled",
        "user": asked.user,
    }
