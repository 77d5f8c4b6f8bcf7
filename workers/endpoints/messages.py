"""`/v1/messages` in terms of chat completions: text and images in, text and JSON out. Pure.

Names and shapes: Anthropic's Messages API, anthropic-sdk-python `types`. Tools, thinking and documents are not in the
list, so they are refused by name.
"""

import secrets
from collections.abc import Mapping
from itertools import groupby
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from jobs import outcomes
from jobs.errors import RequestRejected
from workers.engines.base import Body
from workers.engines.parameters import StopString, check_alternative, without_null
from workers.engines.strict import Strict


class CacheControl(Strict):
    """A wish about caching; it has no effect, and no answer depends on it."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


_FIELDS = {"base64": ("media_type", "data"), "url": ("url",), "file": ("file_id",)}


class Source(Strict):
    """Where an image is."""

    type: Literal["base64", "url", "file"]
    media_type: Literal["image/jpeg", "image/png", "image/gif", "image/webp"] | None = None
    data: str | None = None
    url: str | None = None
    file_id: str | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> "Source":
        given = {name for name in ("media_type", "data", "url", "file_id") if getattr(self, name) is not None}
        if given != set(_FIELDS[self.type]):
            message = f"a {self.type} source has {' and '.join(_FIELDS[self.type])}"
            raise ValueError(message)
        return self


class Block(Strict):
    """Text or an image."""

    type: Literal["text", "image"]
    text: str | None = None
    source: Source | None = None
    cache_control: CacheControl | None = None
    # An earlier answer may be sent as it came.
    citations: None = None

    @model_validator(mode="after")
    def _is_whole(self) -> "Block":
        needed, other = ("source", "text") if self.type == "image" else ("text", "source")
        check_alternative(self, needed, other)
        return self


class SystemBlock(Strict):
    """Part of the system prompt."""

    type: Literal["text"]
    text: str
    cache_control: CacheControl | None = None


class Turn(Strict):
    """One turn."""

    role: Literal["user", "assistant", "system"]
    content: str | Annotated[list[Block], Field(min_length=1)]


class Format(Strict):
    """The schema that an answer must match."""

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Strict):
    """What the answer is like."""

    format: Format | None = None


class Thinking(Strict):
    """Whether the model may think aloud first."""

    type: Literal["disabled"]


class Metadata(Strict):
    """Who asks."""

    user_id: str | None = None


class MessagesParameters(Strict):
    """`/v1/messages`."""

    model: str
    messages: list[Turn] = Field(min_length=1)
    max_tokens: int = Field(ge=1, le=1_000_000)
    system: str | list[SystemBlock] | None = None
    stop_sequences: list[StopString] | None = None
    temperature: float | None = Field(None, ge=0, le=1)
    top_p: float | None = Field(None, gt=0, le=1)
    output_config: OutputConfig | None = None
    # What is done anyhow.
    stream: Literal[False] | None = None
    thinking: Thinking | None = None
    # Without effect here; clients send them all the same.
    cache_control: CacheControl | None = None
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None


def to_chat(asked: MessagesParameters) -> Body:
    """Return the chat completion that gives the same answer.

    Raises:
        RequestRejected: the last turn is the assistant's; engines do not agree on how such a turn goes on.
    """
    if asked.messages[-1].role == "assistant":
        param = f"messages.{len(asked.messages) - 1}"
        message = f"Invalid value for '{param}': the last turn must not be the assistant's (no prefill)."
        raise RequestRejected(message, code="invalid_value", param=param)
    form = asked.output_config and asked.output_config.format
    body = {
        "model": asked.model,
        "messages": [*_system(asked.system), *_turns(asked.messages)],
        "max_completion_tokens": asked.max_tokens,
        "stop": asked.stop_sequences or None,
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "response_format": form
        and {"type": "json_schema", "json_schema": {"name": "output", "strict": True, "schema": form.schema_}},
    }
    return without_null(body)


def _system(system: str | list[SystemBlock] | None) -> list[Body]:
    if not system:
        return []
    # One text: templates exist that read one part only (Gemma 3's).
    text = system if isinstance(system, str) else "\n".join(block.text for block in system)
    return [{"role": "system", "content": text}]


def _turns(turns: list[Turn]) -> list[Body]:
    """Return the turns as chat has them; neighbours of one role are one turn, as Anthropic reads them."""
    merged = []
    for run in _runs(turns):
        alone = run[0][1].content if len(run) == 1 else None
        content = alone if isinstance(alone, str) else [_part(block) for _, turn in run for block in _blocks(turn)]
        merged.append({"role": run[0][1].role, "content": content})
    return merged


def _runs(turns: list[Turn]) -> list[list[tuple[int, Turn]]]:
    """Return the turns with their numbers, neighbours of one role together."""
    return [list(run) for _, run in groupby(enumerate(turns), key=lambda numbered: numbered[1].role)]


def _blocks(turn: Turn) -> list[Block]:
    return [Block(type="text", text=turn.content)] if isinstance(turn.content, str) else turn.content


def _part(block: Block) -> Body:
    if block.source is None:
        return {"type": "text", "text": block.text}
    return {"type": "image_url", "image_url": _image(block.source)}


def _image(source: Source) -> Body:
    if source.type == "file":
        return {"file_id": source.file_id}
    return {"url": source.url if source.type == "url" else f"data:{source.media_type};base64,{source.data}"}


def names(asked: MessagesParameters) -> Mapping[str, str]:
    """Map names of the chat completion's parameters to the client's."""
    known = {
        "max_completion_tokens": "max_tokens",
        "stop": "stop_sequences",
        "response_format": "output_config.format",
        "response_format.json_schema": "output_config.format",
    }
    offset = len(_system(asked.system))
    if offset:
        known["messages.0"] = "system"
    for number, run in enumerate(_runs(asked.messages), offset):
        known |= _names_in(f"messages.{number}", run)
    return known


def _names_in(engines: str, run: list[tuple[int, Turn]]) -> Mapping[str, str]:
    """Map the names of one chat message. One that was made of several turns has no name of its own, its parts have."""
    known = {engines: f"messages.{run[0][0]}" if len(run) == 1 else "messages"}
    blocks = [
        (f"messages.{number}.content.{at}", each) for number, turn in run for at, each in enumerate(_blocks(turn))
    ]
    for at, (clients, block) in enumerate(blocks):
        known[f"{engines}.content.{at}"] = clients
        if block.source:
            field = "data" if block.source.type == "base64" else "url"
            known[f"{engines}.content.{at}.image_url"] = f"{clients}.source"
            known[f"{engines}.content.{at}.image_url.url"] = f"{clients}.source.{field}"
    return known


def from_chat(asked: MessagesParameters, answer: Body) -> Body:
    """Return the Message that a chat completion answers."""
    choice = answer["choices"][0]
    text = choice["message"].get("content")
    return {
        "id": f"msg_{secrets.token_hex(16)}",
        "type": "message",
        "role": "assistant",
        "model": asked.model,
        "content": [{"type": "text", "text": text, "citations": None}] if text else [],
        **_stop(choice),
        "usage": _usage(answer),
    }


def _stop(choice: Body) -> Body:
    """Say why the answer ended. `stop_reason` of a choice, the stop string that was met, is vLLM's extension."""
    met = choice.get("stop_reason")
    if choice["finish_reason"] == "stop" and isinstance(met, str):
        return {"stop_reason": "stop_sequence", "stop_sequence": met}
    reasons = {"length": "max_tokens", "content_filter": "refusal"}
    return {"stop_reason": reasons.get(choice["finish_reason"], "end_turn"), "stop_sequence": None}


def _usage(answer: Body) -> Body:
    """Return the tokens; unlike elsewhere, `input_tokens` leaves out those that came from a cache."""
    counts = outcomes.count_tokens(answer)
    return {
        "input_tokens": counts.input - counts.cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": counts.cached,
        "output_tokens": counts.output,
        "output_tokens_details": {"thinking_tokens": counts.reasoning},
        "service_tier": "batch",
    }
