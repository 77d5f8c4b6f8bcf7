"""SDK: files"""

import base64

from conformance.lines import jsonl
from conformance.user import User, shape, unique

FIELDS = {"id", "object", "bytes", "created_at", "filename", "purpose", "status"}
MONTH = 30 * 86_400
MAX_BYTES = 200_000_000
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def test_create_and_retrieve(user: User) -> None:
    """A file has every field of the contract; its bytes are counted; reading it gives the same object."""
    data = user.make.data(3)
    file = user.upload(data)
    assert FIELDS - set(shape(file)) == set()
    assert (file.object, file.bytes, file.filename, file.purpose) == ("file", len(data), "requests.jsonl", "batch")
    assert type(file.created_at) is int
    assert shape(user.sdk.files.retrieve(file.id)) == shape(file)


def test_content(user: User) -> None:
    """The content is what was sent, byte for byte."""
    data = b"\xef\xbb\xbf" + user.make.data(3).replace(b"\n", b"\r\n") + b"\n"
    assert user.sdk.files.content(user.upload(data).id).content == data


def test_wait_for_processing(user: User) -> None:
    """`files.wait_for_processing` returns: `status` is `processed`, not `uploaded`."""
    file = user.upload(user.make.data(1))
    found = user.sdk.files.wait_for_processing(file.id, poll_interval=0.2, max_wait_seconds=5)
    user.see(found.status)
    assert found.status == "processed"


def test_delete(user: User) -> None:
    """`{id, object: "file", deleted: true}`; afterwards reading, downloading and deleting are 404, and no list has it."""
    file = user.upload(user.make.data(1))
    assert shape(user.sdk.files.delete(file.id)) == {"id": file.id, "object": "file", "deleted": True}
    user.refused(404, lambda: user.sdk.files.retrieve(file.id))
    user.refused(404, lambda: user.sdk.files.content(file.id))
    user.refused(404, lambda: user.sdk.files.delete(file.id))
    assert file.id not in {each.id for each in user.sdk.files.list(limit=100).data}


def test_expires_after(user: User) -> None:
    """`expires_after` sent as the SDK does, in bracketed form fields, is `expires_at` after `created_at`."""
    file = user.upload(user.make.data(1), expires_after={"anchor": "created_at", "seconds": 3_600})
    assert file.expires_at == file.created_at + 3_600
    assert user.sdk.files.retrieve(file.id).expires_at == file.expires_at


def test_default_expiry(user: User) -> None:
    """Without `expires_after` an input file lives 30 days, or (`expires_at` null) until it is deleted."""
    file = user.upload(user.make.data(1))
    user.see("expires_at is", "null" if file.expires_at is None else "30 days on")
    assert file.expires_at in (None, file.created_at + MONTH)


def test_purpose_vision(user: User) -> None:
    """An image is taken with purpose `vision`, listed by it, and deleted."""
    file = user.sdk.files.create(file=("pixel.png", PNG), purpose="vision")
    assert (file.purpose, file.bytes, file.filename) == ("vision", len(PNG), "pixel.png")
    assert file.id in {each.id for each in user.sdk.files.list(purpose="vision", limit=100).data}
    assert user.sdk.files.delete(file.id).deleted


def padded(user: User, size: int) -> bytes:
    """Return an input file of exactly so many bytes, in a hundred lines."""
    rows = [user.make.row(f"row-{number}") for number in range(100)]
    for row in rows:
        row["body"]["user"] = ""
    missing = size - len(jsonl(rows))
    for number, row in enumerate(rows):
        row["body"]["user"] = "x" * (missing // 100 + (number < missing % 100))
    return jsonl(rows)


def test_200_mb(large: None, user: User) -> None:
    """200 MB, and one byte less, are accepted; one byte more is refused at the upload (400, 413), or the batch fails."""
    for size in (MAX_BYTES - 1, MAX_BYTES):
        file = user.upload(padded(user, size))
        assert file.bytes == size
        user.sdk.files.delete(file.id)
    user.unusable(padded(user, MAX_BYTES + 1))


def test_list_by_purpose(user: User) -> None:
    """`purpose` filters: an input file is not among `batch_output`, an output file is not among `batch`."""
    batch = user.run(user.make.data(1))
    inputs = {file.id for file in user.sdk.files.list(purpose="batch", limit=100).data}
    outputs = {file.id for file in user.sdk.files.list(purpose="batch_output", limit=100).data}
    assert batch.input_file_id in inputs - outputs
    assert batch.output_file_id in outputs - inputs


def test_list_in_both_orders(user: User) -> None:
    """`order` is `desc` unless asked otherwise: newest first; `asc` is the other way round."""
    made = [user.upload(jsonl([user.make.row(unique("row"))])) for _ in range(3)]
    newest = [file.created_at for file in user.sdk.files.list(limit=3).data]
    assert newest == sorted(newest, reverse=True)
    assert {file.id for file in made} == {file.id for file in user.sdk.files.list(limit=3).data}
    oldest = [file.created_at for file in user.sdk.files.list(limit=3, order="asc").data]
    assert oldest == sorted(oldest)
    assert oldest[0] <= newest[-1]
