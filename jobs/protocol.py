"""The objects of the OpenAI Batch API as they go over the wire.

Every field is always present, `null` when unset; all times are integer Unix seconds (UTC).
Source: openai-python `types/batch.py`, `types/file_object.py`, `types/batch_error.py`.
"""

from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from jobs.states import BatchStatus

CHAT, COMPLETIONS, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/messages"
BATCH_ENDPOINTS = (CHAT, COMPLETIONS, MESSAGES)
# How long a file may be asked to live, seconds.
MIN_LIFE_SECONDS, MAX_LIFE_SECONDS = 3_600, 2_592_000


Item = TypeVar("Item", bound=BaseModel)


class Page(BaseModel, Generic[Item]):
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


class File(BaseModel):
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


class FileDeleted(BaseModel):
    """The answer to a deletion."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class BatchError(BaseModel):
    """What is wrong with one line of the input file, or with the file itself (`line` is null)."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


class BatchErrors(BaseModel):
    """Everything that is wrong with the input file, up to the configured number of lines."""

    object: Literal["list"] = "list"
    data: list[BatchError]


class RequestCounts(BaseModel):
    """How many requests have an outcome. `completed + failed = total` at every terminal state but `failed`."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class InputTokensDetails(BaseModel):
    """Part of `input_tokens` that the engine did not have to compute again."""

    cached_tokens: int = 0


class OutputTokensDetails(BaseModel):
    """Part of `output_tokens` that was spent on reasoning."""

    reasoning_tokens: int = 0


class Usage(BaseModel):
    """Token counts summed over the outcomes committed so far."""

    input_tokens: int = 0
    input_tokens_details: InputTokensDetails = Field(default_factory=InputTokensDetails)
    output_tokens: int = 0
    output_tokens_details: OutputTokensDetails = Field(default_factory=OutputTokensDetails)
    total_tokens: int = 0


class Batch(BaseModel):
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


class BatchCreate(BaseModel):
    """The body of `POST /v1/batches`. `api.batch_rules` checks what it says, with the contract's errors."""

    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: dict[str, Any] | None = None
    output_expires_after: ExpiresAfter | None = None


class Model(BaseModel):
    """A model that a worker serves."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "promptmill"


class ModelList(BaseModel):
    """The models that workers serve."""

    object: Literal["list"] = "list"
    data: list[Model]


class ErrorBody(BaseModel):
    """What went wrong, in the words of the contract."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorEnvelope(BaseModel):
    """The body of every reply that is not 2xx, and of every row that failed in the engine."""

    error: ErrorBody
