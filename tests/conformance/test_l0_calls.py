"""L0: refused at the call, nothing is created"""

import pytest
from conformance.user import User, said, unique

UNKNOWN_BATCH = "batch_00000000000000000000000000000000"
UNKNOWN_FILE = "file-0000000000000000000000"


def test_endpoint_unknown(user: User) -> None:
    """400 `Invalid value: '…'. Supported values are: …`, param `endpoint`, code `invalid_value`."""
    file = user.upload(user.make.data(1))
    error = user.refused(400, lambda: user.create(file.id, endpoint="/v1/nope"))
    assert (error.type, error.param, error.code) == ("invalid_request_error", "endpoint", "invalid_value")
    assert said(error)["message"].startswith("Invalid value: '/v1/nope'. Supported values are: ")


@pytest.mark.parametrize("window", ["1h", "48h", ""])
def test_completion_window_not_24h(user: User, window: str) -> None:
    """400 that names `completion_window`, for `1h`, `48h` and an empty one."""
    file = user.upload(user.make.data(1))
    error = user.refused(400, lambda: user.create(file.id, completion_window=window))
    assert "completion_window" in f"{error.param} {error.message}"


def test_metadata_value_is_no_string(user: User) -> None:
    """400 `Invalid type for 'metadata.tags': expected a string, but got an array instead.`, code `invalid_type`."""
    file = user.upload(user.make.data(1))
    error = user.refused(400, lambda: user.create(file.id, metadata={"tags": ["a", "b"]}))
    assert (error.type, error.param, error.code) == ("invalid_request_error", "metadata.tags", "invalid_type")
    assert said(error)["message"] == "Invalid type for 'metadata.tags': expected a string, but got an array instead."


@pytest.mark.parametrize(
    "metadata", [{f"key-{number}": "" for number in range(17)}, {"k" * 65: ""}, {"key": "v" * 513}]
)
def test_metadata_too_large(user: User, metadata: dict[str, str]) -> None:
    """400 that names `metadata`, for 17 pairs, a key of 65 characters, a value of 513."""
    file = user.upload(user.make.data(1))
    error = user.refused(400, lambda: user.create(file.id, metadata=metadata))
    assert "metadata" in f"{error.param} {error.message}"


def test_input_file_id_null(user: User) -> None:
    """400 that names `input_file_id`, in the envelope that the SDK reads."""
    error = user.refused(400, lambda: user.create(None))  # type: ignore[arg-type]
    assert (error.type, error.param) == ("invalid_request_error", "input_file_id")


@pytest.mark.parametrize("seconds", [3_599, 2_592_001])
def test_output_expires_after_out_of_range(user: User, seconds: int) -> None:
    """400 that names `output_expires_after`, for 3,599 and 2,592,001 seconds."""
    file = user.upload(user.make.data(1))
    life = {"anchor": "created_at", "seconds": seconds}
    error = user.refused(400, lambda: user.create(file.id, output_expires_after=life))
    assert "output_expires_after" in f"{error.param} {error.message}"


def test_batch_unknown(user: User) -> None:
    """404 `No batch found …`."""
    error = user.refused(404, lambda: user.sdk.batches.retrieve(UNKNOWN_BATCH))
    assert "No batch found" in error.message


def test_cancel_unknown(user: User) -> None:
    """404 `No batch found …`."""
    error = user.refused(404, lambda: user.sdk.batches.cancel(UNKNOWN_BATCH))
    assert "No batch found" in error.message


def test_cancel_completed(user: User) -> None:
    """409 `Cannot cancel a batch with status 'completed'.`, param and code null."""
    batch = user.run(user.make.data(1))
    error = user.refused(409, lambda: user.sdk.batches.cancel(batch.id))
    assert said(error)["message"] == "Cannot cancel a batch with status 'completed'."
    assert (error.param, error.code) == (None, None)


def test_cancel_failed(user: User) -> None:
    """409 `Cannot cancel a batch with status 'failed'.`, param and code null."""
    batch = user.wait(user.submit([{}]))
    error = user.refused(409, lambda: user.sdk.batches.cancel(batch.id))
    assert said(error)["message"] == "Cannot cancel a batch with status 'failed'."
    assert (error.param, error.code) == (None, None)


def test_upload_empty(user: User) -> None:
    """400 `Invalid file format … jsonl`."""
    error = user.refused(400, lambda: user.upload(b""))
    assert "invalid file format" in error.message.lower() and "jsonl" in error.message.lower()


def test_upload_first_line_is_no_json(user: User) -> None:
    """400 `Invalid file format … jsonl`."""
    error = user.refused(400, lambda: user.upload(b"custom_id,prompt\n1,hello\n"))
    assert "invalid file format" in error.message.lower() and "jsonl" in error.message.lower()


def test_upload_purpose_unknown(user: User) -> None:
    """400 in the envelope, param `purpose`."""
    error = user.refused(400, lambda: user.upload(user.make.data(1), purpose="nope"))
    assert (error.type, error.param) == ("invalid_request_error", "purpose")


@pytest.mark.parametrize("seconds", [3_599, 2_592_001])
def test_upload_expires_after_out_of_range(user: User, seconds: int) -> None:
    """400 that names `expires_after`, for 3,599 and 2,592,001 seconds."""
    life = {"anchor": "created_at", "seconds": seconds}
    error = user.refused(400, lambda: user.upload(user.make.data(1), expires_after=life))
    assert "expires_after" in f"{error.param} {error.message}"


def test_file_unknown(user: User) -> None:
    """404 in the envelope, for reading, downloading and deleting."""
    for call in (user.sdk.files.retrieve, user.sdk.files.content, user.sdk.files.delete):
        error = user.refused(404, lambda call=call: call(UNKNOWN_FILE))  # type: ignore[misc]
        assert error.type == "invalid_request_error"


@pytest.mark.parametrize("limit", [0, 101])
def test_batches_limit_out_of_range(user: User, limit: int) -> None:
    """400 that names `limit`, for 0 and 101."""
    error = user.refused(400, lambda: user.sdk.batches.list(limit=limit).data)
    assert "limit" in f"{error.param} {error.message}"


def test_api_key_wrong(user: User) -> None:
    """401 in the envelope, code `invalid_api_key`."""
    error = user.refused(401, lambda: user.sdk.with_options(api_key=unique("wrong")).files.list().data)
    assert (error.type, error.code) == ("invalid_request_error", "invalid_api_key")


def test_path_unknown(user: User) -> None:
    """404 in the envelope: `type` and `message` are there."""
    error = user.refused(404, lambda: user.sdk.get("/nope", cast_to=object))
    assert error.type and isinstance(said(error)["message"], str)


def test_errors_have_the_envelope(user: User) -> None:
    """Every error is `{"error": {message, type, param, code}}`, and the SDK finds its `request_id`."""
    for error in (
        user.refused(400, lambda: user.create("file-1", completion_window="x")),
        user.refused(404, lambda: user.sdk.batches.retrieve(UNKNOWN_BATCH)),
        user.refused(401, lambda: user.sdk.with_options(api_key=unique("wrong")).files.list().data),
    ):
        assert {"message", "type", "param", "code"} <= set(said(error))
        assert error.request_id
