"""The objects of the OpenAI Batch API as they go over the wire.

Every field is always present, `null` when unset; all times are integer Unix seconds (UTC).
Source: openai-python `types/batch.py`, `types/file_object.py`, `types/batch_error.py`, `types/upload.py`.
"""

from datetime import datetime
from typing import Annotated, Any, Generic, Literal, TypeVar, overload

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema

from jobs.events import EventType
from jobs.states import BatchStatus

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
RESPONSES, SCORE, MESSAGES = "/v1/responses", "/v1/score", "/v1/messages"
# What a batch may be for. `/v1/score` is vLLM's, `/v1/messages` is Anthropic's; all others are OpenAI's.
BATCH_ENDPOINTS = (CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES, SCORE, MESSAGES)
# What a client may upload files for: requests of a batch; images; anything else.
BATCH_PURPOSE = "batch"
PURPOSES = (BATCH_PURPOSE, "vision", "user_data")
# How long a file may be asked to live, seconds.
MIN_LIFE_SECONDS, MAX_LIFE_SECONDS = 3_600, 2_592_000


class Wire(BaseModel):
    """An object that is sent: the OpenAPI document says that every field is there."""

    model_config = ConfigDict(json_schema_serialization_defaults_required=True)


@overload
def unix(moment: datetime) -> int: ...
@overload
def unix(moment: None) -> None: ...
def unix(moment: datetime | None) -> int | None:
    """Return a moment as it goes over the wire."""
    return None if moment is None else int(moment.timestamp())


Item = TypeVar("Item", bound=BaseModel)


class Page(Wire, Generic[Item]):
    """One page of a listing; the next one is `after=last_id`."""

    object: Literal["list"] = "list"
    data: list[Item]
    first_id: str | None
    last_id: str | None
    has_more: bool

    @classmethod
    def of(cls, data: list[Item], *, has_more: bool) -> "Page[Item]":
        """Return the page that holds `data`; every item has an `id`."""
        ids = [getattr(item, "id") for item in data]  # noqa: B009  a bound of `id: str` needs a protocol of its own
        return cls(data=data, first_id=ids[0] if ids else None, last_id=ids[-1] if ids else None, has_more=has_more)


class File(Wire):
    """An uploaded file, or the output or error file of a batch."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None = None
    filename: str
    purpose: str
    # The SDK's `files.wait_for_processing` ends on "processed" only; "uploaded" would make it wait for 30 minutes.
    status: Literal["processed"] = "processed"
    status_details: None = None


class FileDeleted(Wire):
    """The answer to a deletion."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class Upload(Wire):
    """A file that is sent in parts."""

    id: str
    object: Literal["upload"] = "upload"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: Literal["pending", "completed", "cancelled", "expired"]
    # What the parts became: set on a completed upload, until the file is deleted.
    file: File | None = None


class UploadPart(Wire):
    """A run of bytes of an upload."""

    id: str
    object: Literal["upload.part"] = "upload.part"
    created_at: int
    upload_id: str


class BatchError(Wire):
    """What is wrong with one line of the input file, or with the file itself (`line` is null)."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


class BatchErrors(Wire):
    """Everything that is wrong with the input file, up to the configured number of lines."""

    object: Literal["list"] = "list"
    data: list[BatchError]


class RequestCounts(Wire):
    """How many requests have an outcome. `completed + failed = total` at every terminal state but `failed`."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class InputTokensDetails(Wire):
    """Part of `input_tokens` that the engine did not have to compute again."""

    cached_tokens: int = 0


class OutputTokensDetails(Wire):
    """Part of `output_tokens` that was spent on reasoning."""

    reasoning_tokens: int = 0


class Usage(Wire):
    """Token counts summed over the outcomes committed so far."""

    input_tokens: int = 0
    input_tokens_details: InputTokensDetails = Field(default_factory=InputTokensDetails)
    output_tokens: int = 0
    output_tokens_details: OutputTokensDetails = Field(default_factory=OutputTokensDetails)
    total_tokens: int = 0


class Batch(Wire):
    """A batch as its client sees it."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    model: str | None = None
    errors: BatchErrors | None = None
    input_file_id: str
    completion_window: str
    status: BatchStatus
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int
    in_progress_at: int | None = None
    expires_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: RequestCounts
    usage: Usage | None = None
    metadata: dict[str, str] | None = None


class ExpiresAfter(BaseModel):
    """When a file expires, counted from its creation."""

    model_config = ConfigDict(extra="forbid")

    anchor: Literal["created_at"]
    seconds: int = Field(ge=MIN_LIFE_SECONDS, le=MAX_LIFE_SECONDS)


def _unicode(text: str) -> str:
    """JSON can spell half a surrogate pair; it can be neither stored nor sent back."""
    try:
        text.encode()
    except UnicodeEncodeError:
        message = "not valid Unicode"
        raise ValueError(message) from None
    return text


Text = Annotated[str, AfterValidator(_unicode)]


class UploadCreate(BaseModel):
    """The body of `POST /v1/uploads`. `mime_type` has no effect: a file is the bytes that it has."""

    filename: Annotated[Text, Field(min_length=1, max_length=1_000)]
    purpose: Text
    bytes: int = Field(ge=1)
    mime_type: Text
    expires_after: ExpiresAfter | None = None


class UploadComplete(BaseModel):
    """The body of `POST /v1/uploads/{id}/complete`: the parts in the order of the file."""

    part_ids: list[str] = Field(min_length=1)
    md5: str | None = Field(default=None, pattern="^[0-9a-fA-F]{32}$")


_METADATA = {
    "type": "object",
    "maxProperties": 16,
    "propertyNames": {"maxLength": 64},
    "additionalProperties": {"type": "string", "maxLength": 512},
}


class BatchCreate(BaseModel):
    """A new batch."""

    # `api.batch_rules` checks these, with the contract's errors; the document says what it checks.
    input_file_id: str
    endpoint: Annotated[str, WithJsonSchema({"type": "string", "enum": list(BATCH_ENDPOINTS)})]
    completion_window: Annotated[str, WithJsonSchema({"type": "string", "pattern": "^[1-9][0-9]{0,2}[hd]$"})]
    metadata: Annotated[dict[str, Any] | None, WithJsonSchema({"anyOf": [_METADATA, {"type": "null"}]})] = None
    output_expires_after: ExpiresAfter | None = None


class Model(Wire):
    """A model that a worker serves."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "promptmill"


class ModelList(Wire):
    """The models that workers serve."""

    object: Literal["list"] = "list"
    data: list[Model]


class WebhookEndpoint(Wire):
    """A receiver that is told when batches of its project end. Source: openai-python `types/webhooks/`."""

    id: str
    object: Literal["webhook_endpoint"] = "webhook_endpoint"
    name: str
    url: str
    event_types: list[EventType]
    created_at: int
    updated_at: int
    disabled_at: int | None
    signing_secret_hint: str


class WebhookEndpointWithSecret(WebhookEndpoint):
    """The answer that shows the secret: to its creation, and to its change."""

    signing_secret: str


class WebhookEndpointDeleted(Wire):
    """The answer to a deletion."""

    id: str
    object: Literal["webhook_endpoint.deleted"] = "webhook_endpoint.deleted"
    deleted: Literal[True] = True


EventTypes = Annotated[list[EventType], Field(min_length=1)]


class WebhookEndpointCreate(BaseModel):
    """The body of `POST /v1/webhook_endpoints`. `jobs.webhooks` checks name and URL."""

    url: str
    name: str = ""
    event_types: EventTypes = list(EventType)


class WebhookEndpointUpdate(BaseModel):
    """The body of `POST /v1/webhook_endpoints/{id}`: what is to change."""

    url: str | None = None
    name: str | None = None
    event_types: EventTypes | None = None


class WebhookSecretRotate(BaseModel):
    """The body of `POST /v1/webhook_endpoints/{id}/rotate_secret`."""

    keep_old_secret_active_for_24_hours: bool = False


class WebhookEventTypeList(Wire):
    """What an endpoint can be told."""

    object: Literal["list"] = "list"
    data: list[EventType]


class WebhookDelivery(Wire):
    """A message to an endpoint, and how far it came."""

    id: str
    object: Literal["webhook_delivery"] = "webhook_delivery"
    type: EventType
    batch_id: str
    status: Literal["waiting", "delivered", "given_up"]
    attempts: int
    last_status_code: int | None
    last_error: str | None
    created_at: int
    last_attempt_at: int | None
    next_attempt_at: int | None
    delivered_at: int | None
    given_up_at: int | None


class ErrorBody(Wire):
    """What went wrong, in the words of the contract."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorEnvelope(Wire):
    """The body of every reply that is not 2xx, and of every row that failed in the engine."""

    error: ErrorBody
