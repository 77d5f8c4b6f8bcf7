"""What a request to vLLM may say: the allow-list of `parameters`, and what vLLM has more of. Pure.

    body ── check ──► checked model ── constraints ──► what a sandbox must compile first (`sandbox.py`)
                                   └── request ──────► what vLLM's request class is made of

vLLM gets nothing that is not built here. Each bound that is not the OpenAI API's stands against an advisory or a crash;
`docs/vllm-advisories.md` says which. Names: vLLM 0.26 to 0.33, `entrypoints/openai/*/protocol.py`,
`entrypoints/pooling/*/protocol.py`.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, Discriminator, Field, Tag, field_validator, model_validator

from jobs.errors import RequestRejected
from workers.engines import parameters, schemas, xgrammar_schemas
from workers.engines.base import Body
from workers.engines.parameters import (
    ChatParameters,
    CompletionParameters,
    EmbeddingParameters,
    JsonSchema,
    Message,
    ResponseFormat,
)
from workers.engines.parts import ImagePart, TextPart
from workers.engines.strict import Strict

# Ours. A tool's schema counts as a part of one schema for all of them.
MAX_TOOLS, MAX_TOOL_CALLS = 128, 128
MAX_CHOICES, MAX_CHOICE_CHARS = 500, 1_000
MAX_REGEX_CHARS, MAX_GRAMMAR_CHARS = 1_000, 65_536
MAX_DIMENSIONS = 65_536
# Below this vLLM decodes greedily, and takes `n` of 1 only (`sampling_params.py`, `_SAMPLING_EPS`).
GREEDY_BELOW = 1e-5

_EBNF_COMMENT = re.compile(r"(#|//).*$", re.MULTILINE)
_PLACEHOLDER_KEY = re.compile(r"^(image|img|media|video|audio|vision|speech|boi|eoi|boa|eoa)_(\w+_)?(id|index)$")
# Taken since clients send them all the same, or put in another way.
_WITHOUT_EFFECT = {"user", "metadata", "store", "stream", "echo"}
# What `request` hands on as it came: pydantic would look at each word of a schema again.
_HANDED_ON: Any = {"response_format": {"json_schema": {"schema_"}}, "structured_outputs": {"json_"}}
_LEFT_OUT: Any = dict.fromkeys(_WITHOUT_EFFECT, True) | _HANDED_ON


@dataclass(frozen=True)
class Rules:
    """What one worker's settings and model allow."""

    regex: bool = False
    """`structured_outputs.regex`."""
    grammar: bool = False
    """`structured_outputs.grammar`."""
    tools: bool = False
    """`tools`: whether the engine has a parser for the model's calls."""
    images: int = 0
    """Most images of a request."""
    vocabulary: int = 0
    """Token ids in an `input` of embeddings must be below it; with 0 there may be none."""
    placeholders: Mapping[int, str] = field(default_factory=dict)
    """The tokens that stand for images, audio or video in a prompt, by id (`placeholders`)."""


class Function(Strict):
    """What the model may call."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @field_validator("parameters")
    @classmethod
    def _bounded(cls, schema: dict[str, Any] | None) -> dict[str, Any] | None:
        if schema:
            schemas.check(schema, xgrammar_schemas.PROFILE)
        return schema


class Tool(Strict):
    """A function."""

    type: Literal["function"]
    function: Function


class FunctionName(Strict):
    """One of the functions."""

    name: str


class NamedTool(Strict):
    """The function that must be called."""

    type: Literal["function"]
    function: FunctionName


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("union:word")] | Annotated[NamedTool, Tag("union:name")],
    Discriminator(lambda value: "union:word" if isinstance(value, str) else "union:name"),
]


class Call(Strict):
    """What an earlier answer called."""

    name: str = Field(min_length=1, max_length=64)
    arguments: str

    @field_validator("arguments")
    @classmethod
    def _is_an_object(cls, arguments: str) -> str:
        """VLLM decodes them again, for the chat template."""
        try:
            value = json.loads(arguments) if arguments else {}
        except (ValueError, RecursionError):
            value = None
        schemas.require(isinstance(value, dict), "the arguments of a call must be a JSON object")
        return arguments


class ToolCall(Strict):
    """A call in an earlier answer."""

    id: str = Field(max_length=200)
    type: Literal["function"]
    function: Call


class Answer(Strict):
    """A turn of the assistant; an earlier answer may be sent as it came."""

    role: Literal["assistant"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=MAX_TOOL_CALLS)] | None = None
    reasoning: str | None = None
    refusal: None = None
    annotations: None = None
    audio: None = None
    function_call: None = None

    @model_validator(mode="after")
    def _says_something(self) -> "Answer":
        schemas.require(self.content is not None or bool(self.tool_calls), "content or tool_calls is missing")
        return self


class ToolResult(Strict):
    """What a call came to."""

    role: Literal["tool"]
    content: str | list[TextPart]
    tool_call_id: str = Field(max_length=200)
    name: str | None = None


def _turn(value: Any) -> str:
    role = value.get("role") if isinstance(value, dict) else getattr(value, "role", None)
    return f"union:{role}" if role in ("assistant", "tool") else "union:others"


Turn = Annotated[
    Annotated[Answer, Tag("union:assistant")]
    | Annotated[ToolResult, Tag("union:tool")]
    | Annotated[Message, Tag("union:others")],
    Discriminator(_turn),
]


class VllmJsonSchema(JsonSchema):
    """The schema that an answer must match, as far as xgrammar heeds schemas."""

    profile: ClassVar = xgrammar_schemas.PROFILE


class VllmResponseFormat(ResponseFormat):
    """The form of the answer."""

    json_schema: VllmJsonSchema | None = None


Choice = Annotated[str, Field(min_length=1, max_length=MAX_CHOICE_CHARS, pattern=r"^[^\x00-\x1f\x7f]*$")]


class StructuredOutputs(Strict):
    """One way of saying what the answer must be. Absent, empty and several are refused: they have ended engines."""

    json_: dict[str, Any] | None = Field(None, alias="json")
    choice: Annotated[list[Choice], Field(min_length=1, max_length=MAX_CHOICES)] | None = None
    regex: Annotated[str, Field(min_length=1, max_length=MAX_REGEX_CHARS, pattern=r"^[^\x00]*$")] | None = None
    grammar: Annotated[str, Field(max_length=MAX_GRAMMAR_CHARS)] | None = None

    @field_validator("json_")
    @classmethod
    def _bounded(cls, schema: dict[str, Any]) -> dict[str, Any]:
        schemas.check(schema, xgrammar_schemas.PROFILE)
        return schema

    @field_validator("grammar")
    @classmethod
    def _is_ebnf(cls, grammar: str) -> str:
        # vLLM takes a grammar without it for Lark, which its versions read in different ways.
        schemas.require("::=" in _EBNF_COMMENT.sub("", grammar), "the grammar must be EBNF, with '::='")
        return grammar

    @model_validator(mode="after")
    def _is_one(self) -> "StructuredOutputs":
        schemas.require(len(self.model_fields_set - _nulls(self)) == 1, "give one of json, choice, regex, grammar")
        return self


def _nulls(model: BaseModel) -> set[str]:
    return {name for name in model.model_fields_set if getattr(model, name) is None}


class TemplateFlags(Strict):
    """What chat templates call the same: whether the model thinks aloud first."""

    enable_thinking: bool | None = None
    thinking: bool | None = None


class Extras(Strict):
    """What vLLM has for both endpoints."""

    top_k: int | None = Field(None, ge=-1, le=2**31 - 1)
    min_p: float | None = Field(None, ge=0, le=1)
    # Near zero it makes infinities of log-probabilities.
    repetition_penalty: float | None = Field(None, ge=0.1, le=10)
    min_tokens: int | None = Field(None, ge=0, le=1_000_000)
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    structured_outputs: StructuredOutputs | None = None


class VllmCompletion(CompletionParameters, Extras):
    """`/v1/completions`."""

    response_format: VllmResponseFormat | None = None

    @property
    def limit(self) -> int | None:
        """The most tokens of the answer."""
        return self.max_tokens


class VllmChat(ChatParameters, Extras):
    """`/v1/chat/completions`."""

    messages: list[Turn] = Field(min_length=1)  # type: ignore[assignment]  # more kinds of turns
    response_format: VllmResponseFormat | None = None
    tools: Annotated[list[Tool], Field(min_length=1, max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    include_reasoning: bool | None = None
    chat_template_kwargs: TemplateFlags | None = None

    @property
    def limit(self) -> int | None:
        """The most tokens of the answer; `max_tokens` is the old name."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


class VllmEmbedding(EmbeddingParameters):
    """`/v1/embeddings`."""

    dimensions: int | None = Field(None, ge=1, le=MAX_DIMENSIONS)


Asked = VllmChat | VllmCompletion | VllmEmbedding
Kind = TypeVar("Kind", VllmChat, VllmCompletion, VllmEmbedding)


def _require(fits: bool, param: str, message: str) -> None:  # noqa: FBT001  reads as an assertion
    if not fits:
        raise RequestRejected(f"Invalid value for '{param}': {message}.", code="invalid_value", param=param)


def _check_generation(asked: VllmChat | VllmCompletion) -> None:
    if asked.min_tokens is not None:
        # Without a limit of its own, a request has vLLM's, which is not known here.
        fits = asked.limit is not None and asked.min_tokens <= asked.limit
        _require(fits, "min_tokens", "it needs max_tokens, and must not be above it")
    greedy = asked.temperature is not None and asked.temperature < GREEDY_BELOW
    _require(not greedy or (asked.n or 1) == 1, "n", "it must be 1 at temperature 0")
    both = asked.structured_outputs is not None and _has_form(asked)
    _require(not both, "structured_outputs", "give one of response_format and structured_outputs")


def _has_form(asked: VllmChat | VllmCompletion) -> bool:
    return asked.response_format is not None and asked.response_format.type != "text"


def _check_tools(asked: VllmChat) -> None:
    choice = asked.tool_choice
    _require(choice in (None, "none") or asked.tools is not None, "tool_choice", "it needs tools")
    if asked.tools is None:
        return
    names = [tool.function.name for tool in asked.tools]
    _require(len(set(names)) == len(names), "tools", "two have the same name")
    is_forced = choice == "required" or isinstance(choice, NamedTool)
    _require(not isinstance(choice, NamedTool) or choice.function.name in names, "tool_choice", "it names none of them")
    has_form = asked.structured_outputs is not None or _has_form(asked)
    _require(not (is_forced and has_form), "tool_choice", "an answer that must be a call has no other form")
    try:
        # Parts of a whole: their bounds are those of one schema, and a `$ref` must hold from its root.
        schemas.check({"anyOf": _calls(asked.tools), "$defs": _definitions(asked.tools)}, xgrammar_schemas.PROFILE)
    except ValueError as error:
        _require(False, "tools", str(error))  # noqa: FBT003


def _check_images(asked: VllmChat, rules: Rules) -> None:
    """VLLM counts them too, and does not say which is one too many."""
    places = [
        f"messages.{number}.content.{position}"
        for number, turn in enumerate(asked.messages)
        for position, part in enumerate(turn.content if isinstance(turn.content, list) else ())
        if isinstance(part, ImagePart)
    ]
    if len(places) > rules.images:
        _require(False, places[rules.images], f"a request has {rules.images} images at most")  # noqa: FBT003


def _definitions(tools: list[Tool]) -> dict[str, Any]:
    """Return the `$defs` of all tools, which vLLM puts together."""
    shared: dict[str, Any] = {}
    for tool in tools:
        for name, schema in ((tool.function.parameters or {}).get("$defs") or {}).items():
            schemas.require(shared.setdefault(name, schema) == schema, "two tools have different '$defs' of one name")
    return shared


def _calls(tools: list[Tool]) -> list[dict[str, Any]]:
    """Return the schema of a call of each tool, as vLLM has it (`tool_parsers/utils.py`)."""
    return [
        {
            "properties": {"name": {"type": "string", "enum": [tool.function.name]}, "parameters": _arguments(tool)},
            "required": ["name", "parameters"],
        }
        for tool in tools
    ]


def _arguments(tool: Tool) -> dict[str, Any]:
    given = tool.function.parameters or {"type": "object", "properties": {}}
    return {name: value for name, value in given.items() if name != "$defs"}


def check(kind: type[Kind], body: Body, rules: Rules) -> Kind:
    """Return the checked parameters. Null stands for the default, as if the parameter were not there.

    Raises:
        RequestRejected: a parameter is unknown, not allowed here or out of bounds, or a text has a placeholder; it is
            named.
    """
    asked = parameters.check(kind, body)
    for name in _forbidden(asked, rules):
        raise RequestRejected(f"Unsupported parameter: '{name}'.", code="unsupported_parameter", param=name)
    if isinstance(asked, VllmChat | VllmCompletion):
        _check_generation(asked)
    if isinstance(asked, VllmChat):
        _check_tools(asked)
        _check_images(asked, rules)
    _check_token_ids(asked, rules)
    _check_texts(asked, rules)
    return asked


def _forbidden(asked: Asked, rules: Rules) -> Iterator[str]:
    if isinstance(asked, VllmChat) and asked.tools is not None and not rules.tools:
        yield "tools"
    form = getattr(asked, "structured_outputs", None)
    if form is not None:
        names = (name for name in ("regex", "grammar") if not getattr(rules, name))
        yield from (f"structured_outputs.{name}" for name in names if getattr(form, name) is not None)


def _check_token_ids(asked: Asked, rules: Rules) -> None:
    """Ids beyond the vocabulary have ended engines."""
    if not isinstance(asked, VllmEmbedding) or isinstance(asked.input, str) or isinstance(asked.input[0], str):
        return
    lists: Any = asked.input if isinstance(asked.input[0], list) else [asked.input]
    fits = all(token < rules.vocabulary and token not in rules.placeholders for tokens in lists for token in tokens)
    _require(fits, "input", "a token id is not in this model's vocabulary")


def _check_texts(asked: Asked, rules: Rules) -> None:
    """Refuse texts that have a token in them which stands for an image, wherever a template may put them together.

    vLLM reads such a token in a text as the token itself. It puts an image there, or finds one image too many, and
    engines have died of it (CVE-2026-44222). A model that takes text only has none of them.
    """
    for param, texts in _texts(asked):
        together = "".join(text.strip() for text in texts)
        found = next((name for name in rules.placeholders.values() if name in together), None)
        _require(found is None, param, f"'{found}' stands for an image, audio or video in this model's prompts")


def _texts(asked: Asked) -> Iterator[tuple[str, list[str]]]:
    """Yield what the model will read, by parameter; texts of one list may follow each other in the prompt."""
    match asked:
        case VllmChat():
            yield from ((f"messages.{number}", _words(turn)) for number, turn in enumerate(asked.messages))
            yield "tools", [json.dumps(tool.model_dump(), ensure_ascii=False) for tool in asked.tools or ()]
        case VllmCompletion():
            yield "prompt", [asked.prompt]
        case VllmEmbedding():
            texts = [asked.input] if isinstance(asked.input, str) else asked.input
            yield "input", [text for text in texts if isinstance(text, str)]


def _words(turn: Answer | ToolResult | Message) -> list[str]:
    parts = [turn.content] if isinstance(turn.content, str) else turn.content or []
    words = [part if isinstance(part, str) else getattr(part, "text", None) for part in parts]
    words += [turn.name, *([turn.reasoning] if isinstance(turn, Answer) else ())]
    for call in (isinstance(turn, Answer) and turn.tool_calls) or ():
        # Decoded, as the template sees them.
        arguments = json.dumps(json.loads(call.function.arguments or "{}"), ensure_ascii=False)
        words += [call.id, call.function.name, arguments]
    words += [turn.tool_call_id] if isinstance(turn, ToolResult) else []
    return [word for word in words if word]


def placeholders(config: Mapping[str, Any], name_of: Callable[[int], str | None]) -> dict[int, str]:
    """Return the tokens that stand for images, audio or video in the prompts of a model.

    Args:
        config: the model's `config.json`; it names them by id, in keys such as `image_token_id`, `boi_token_index`.
        name_of: gives the text of a token, as the tokenizer has it.
    """
    ids = {value for key, value in config.items() if _PLACEHOLDER_KEY.search(key) and type(value) is int}
    return {token: name for token in sorted(ids) if (name := name_of(token))}


@dataclass(frozen=True)
class Constraint:
    """What an answer must match, for `Sandbox.check`."""

    kind: Literal["json", "regex", "grammar"]
    text: str
    """A JSON schema, a regular expression, or a grammar in EBNF; what vLLM's grammar compiler will be given."""
    param: str
    """The parameter to blame."""


def constraints(asked: VllmChat | VllmCompletion) -> list[Constraint]:
    """Return what must have been compiled before the request may reach the engine."""
    found = [*_of_format(asked.response_format), *_of_outputs(asked.structured_outputs)]
    if isinstance(asked, VllmChat) and asked.tools and asked.tool_choice != "none":
        schema = {"type": "array", "minItems": 1, "items": {"type": "object", "anyOf": _calls(asked.tools)}}
        shared = _definitions(asked.tools)
        found.append(Constraint("json", json.dumps(schema | ({"$defs": shared} if shared else {})), "tools"))
    return found


def _of_format(form: ResponseFormat | None) -> Iterator[Constraint]:
    if form and form.json_schema and form.type == "json_schema":
        text = schemas.check(form.json_schema.schema_, xgrammar_schemas.PROFILE)
        yield Constraint("json", text, "response_format.json_schema")


def _of_outputs(asked: StructuredOutputs | None) -> Iterator[Constraint]:
    if asked is None:
        return
    if asked.json_ is not None:
        yield Constraint("json", schemas.check(asked.json_, xgrammar_schemas.PROFILE), "structured_outputs.json")
    if asked.choice is not None:
        yield Constraint("grammar", _choice_grammar(asked.choice), "structured_outputs.choice")
    if asked.regex is not None:
        yield Constraint("regex", asked.regex, "structured_outputs.regex")
    if asked.grammar is not None:
        yield Constraint("grammar", asked.grammar, "structured_outputs.grammar")


def _choice_grammar(choices: list[str]) -> str:
    """Return the grammar that vLLM makes of choices (`v1/structured_output/utils.py`)."""
    quoted = (text.replace("\\", "\\\\").replace('"', '\\"') for text in choices)
    return "root ::= " + " | ".join(f'"{text}"' for text in quoted)


def request(asked: Asked) -> Body:
    """Return what vLLM's request class is made of: `model` and the rest that was asked for, and nothing else.

    The engine's side adds what no client may: `request_id`, `cache_salt`, `priority`.
    """
    payload = asked.model_dump(by_alias=True, exclude_none=True, exclude=_LEFT_OUT)
    if isinstance(asked, VllmChat) and payload.pop("max_tokens", None):
        # The old name; vLLM takes it too, and prefers the new one.
        payload["max_completion_tokens"] = asked.limit
    if isinstance(asked, VllmChat | VllmCompletion):
        _hand_on(asked, payload)
    return payload


def _hand_on(asked: VllmChat | VllmCompletion, payload: Body) -> None:
    """Put in the schemas that were left out."""
    if asked.response_format and (form := asked.response_format.json_schema):
        payload["response_format"]["json_schema"]["schema"] = form.schema_
        # vLLM wants a name, and does nothing with it.
        payload["response_format"]["json_schema"].setdefault("name", "output")
    if asked.structured_outputs and asked.structured_outputs.json_ is not None:
        payload["structured_outputs"]["json"] = asked.structured_outputs.json_
