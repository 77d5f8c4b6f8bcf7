"""The parameters that a request may have: an allow-list with bounds.

An engine gets what is built from these models, never the client's body: engines ignore what they do not know, and some
values of what they do know crash them or run for minutes. Names and bounds: the OpenAI API reference; limits of ours
say so.
"""

from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from jobs.errors import RequestRejected
from workers.engines import schemas
from workers.engines.base import Body

# Ours: each choice is a request of its own for the engine.
MAX_CHOICES = 16
# The OpenAI API's own.
MAX_EMBEDDING_INPUTS = 2_048
MAX_PARAM_CHARS = 200

StopString = Annotated[str, Field(min_length=1, max_length=1_000)]


class Strict(BaseModel):
    """An object of a request: nothing else in it, and no value of another type."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def check_alternative(part: Strict, needed: str, other: str) -> None:
    """Make sure that a part has what its type needs, and not what the other type has.

    Raises:
        ValueError: it has not.
    """
    if getattr(part, needed) is None:
        message = f"{needed} is missing"
        raise ValueError(message)
    if getattr(part, other) is not None:
        message = f"{other} does not belong to {part.type}"  # type: ignore[attr-defined]  # every such part has one
        raise ValueError(message)


def without_null(body: Body) -> Body:
    """Return what is given: null stands for the default, as if the parameter were not there."""
    return {name: value for name, value in body.items() if value is not None}


class TextPart(Strict):
    """Part of a message."""

    type: Literal["text"]
    text: str


class Message(Strict):
    """One turn. Images, audio and tool calls are not text."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None


class JsonSchema(Strict):
    """The schema that an answer must match."""

    profile: ClassVar = schemas.LLAMACPP

    name: str | None = None
    description: str | None = None
    strict: bool | None = None
    schema_: dict[str, Any] = Field(alias="schema")

    @field_validator("schema_")
    @classmethod
    def _bounded(cls, schema: dict[str, Any]) -> dict[str, Any]:
        schemas.check(schema, cls.profile)
        return schema


class ResponseFormat(Strict):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _schema_is_there(self) -> "ResponseFormat":
        if self.type == "json_schema" and self.json_schema is None:
            message = "json_schema is missing"
            raise ValueError(message)
        return self


class Sampling(Strict):
    """What both endpoints take."""

    model: str
    max_tokens: int | None = Field(None, ge=1, le=1_000_000)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    stop: StopString | Annotated[list[StopString], Field(max_length=4)] | None = None
    seed: int | None = Field(None, ge=0, le=2**32 - 1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    response_format: ResponseFormat | None = None
    # Without effect here; clients send them all the same.
    stream: Literal[False] | None = None
    user: str | None = None


class ChatParameters(Sampling):
    """`/v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1, le=1_000_000)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    metadata: dict[str, str] | None = None
    store: bool | None = None

    @model_validator(mode="after")
    def _logprobs_are_asked_for(self) -> "ChatParameters":
        if self.top_logprobs is not None and not self.logprobs:
            message = "top_logprobs needs logprobs to be true"
            raise ValueError(message)
        return self


class CompletionParameters(Sampling):
    """`/v1/completions`."""

    prompt: str = Field(min_length=1)
    logprobs: int | None = Field(None, ge=0, le=5)
    echo: Literal[False] | None = None


def _kind(value: Any) -> str:  # noqa: ANN401  any JSON
    """Name what an input is meant to be by its first item, so that an error is about that and nothing else."""
    first = value[0] if isinstance(value, list) and value else ""
    item = "list" if isinstance(first, list) else "int" if isinstance(first, int) else "str"
    return f"list[{item}]" if isinstance(value, list) else "str"


Token = Annotated[int, Field(ge=0, lt=2**31)]
Tokens = Annotated[list[Token], Field(min_length=1)]
Input = Annotated[str, Field(min_length=1)]
_AtMost = Field(min_length=1, max_length=MAX_EMBEDDING_INPUTS)


class EmbeddingParameters(Strict):
    """`/v1/embeddings`."""

    model: str
    input: Annotated[
        Annotated[Input, Tag("str")]
        | Annotated[list[Input], _AtMost, Tag("list[str]")]
        | Annotated[Tokens, Tag("list[int]")]
        | Annotated[list[Tokens], _AtMost, Tag("list[list]")],
        Discriminator(_kind),
    ]
    encoding_format: Literal["float", "base64"] | None = None
    # Without effect here; clients send it all the same.
    user: str | None = None


Parameters = TypeVar("Parameters", bound=BaseModel)


def check(kind: type[Parameters], body: Body) -> Parameters:
    """Return the checked parameters. Null stands for the default, as if the parameter were not there.

    Raises:
        RequestRejected: a parameter is unknown or out of bounds; it is named.
    """
    try:
        return kind.model_validate(without_null(body))
    except ValidationError as error:
        raise _rejection(error) from None


def _rejection(error: ValidationError) -> RequestRejected:
    # A union reports each of its members; the problem that lies deepest is the one the client can mend.
    problem = max(error.errors(include_input=False, include_url=False), key=lambda each: len(each["loc"]))
    # A name that is not ours may be as long as a line.
    param = ".".join(str(part) for part in problem["loc"] if not _names_a_type(part))[:MAX_PARAM_CHARS] or None
    if problem["type"] == "extra_forbidden":
        return RequestRejected(f"Unsupported parameter: '{param}'.", code="unsupported_parameter", param=param)
    if problem["type"] == "missing":
        message = f"Missing required parameter: '{param}'."
        return RequestRejected(message, code="missing_required_parameter", param=param)
    reason = problem["msg"].removeprefix("Value error, ")
    message = f"Invalid value for '{param}': {reason}." if param else f"Invalid request: {reason}."
    return RequestRejected(message, code="invalid_value", param=param)


def _names_a_type(part: str | int) -> bool:
    """Tell pydantic's own marks of union members from names of parameters."""
    marks = ("list[", "constrained-", "literal[", "union:")
    return isinstance(part, str) and (part.startswith(marks) or part in {"str", "bool"})
