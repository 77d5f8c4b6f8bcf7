"""SDK: uploads in parts"""

import hashlib

from conformance.parts import begin, complete, part, send, thirds
from conformance.user import User, shape

FIELDS = {"id", "object", "bytes", "created_at", "expires_at", "filename", "purpose", "status"}
HOUR = 3_600


def test_upload_create(user: User) -> None:
    """An upload is `pending`, has every field of the contract, and expires after an hour."""
    upload = begin(user, 100)
    assert FIELDS - set(shape(upload)) == set()
    assert (upload.object, upload.status, upload.bytes) == ("upload", "pending", 100)
    assert (upload.filename, upload.purpose) == ("parts.jsonl", "batch")
    assert upload.expires_at == upload.created_at + HOUR


def test_parts_out_of_order(user: User) -> None:
    """Three parts sent at once, last first; `complete` puts them in order, checks the MD5, and nests the file."""
    data = user.make.data(9)
    upload = begin(user, len(data))
    ids = send(user, upload, thirds(data))
    done = complete(user, upload, ids, md5=hashlib.md5(data).hexdigest())
    assert done.status == "completed"
    assert done.file and (done.file.bytes, done.file.purpose) == (len(data), "batch")
    assert user.sdk.files.content(done.file.id).content == data
    batch = user.wait(user.create(done.file.id))
    user.see(batch.status)
    assert batch.status == "completed"


def test_complete_with_wrong_md5(user: User) -> None:
    """400; no file is made."""
    data = user.make.data(3)
    upload = begin(user, len(data))
    ids = send(user, upload, [data])
    user.refused(400, lambda: complete(user, upload, ids, md5=hashlib.md5(b"").hexdigest()))


def test_complete_with_other_size(user: User) -> None:
    """400 when the parts have not as many bytes as were announced."""
    data = user.make.data(3)
    upload = begin(user, len(data) + 1)
    ids = send(user, upload, [data])
    user.refused(400, lambda: complete(user, upload, ids))


def test_complete_with_unknown_part(user: User) -> None:
    """400 or 404 for a part that is not the upload's."""
    upload = begin(user, 10)
    user.refused((400, 404), lambda: complete(user, upload, ["part_00000000000000000000"]))


def test_part_after_cancel(user: User) -> None:
    """Cancelling gives `cancelled`; a part sent afterwards is refused with 400, and so is completing."""
    upload = begin(user, 10)
    assert user.sdk.uploads.cancel(upload.id).status == "cancelled"
    user.refused(400, lambda: part(user, upload, b"0123456789"))
    user.refused(400, lambda: complete(user, upload, []))


def test_part_after_complete(user: User) -> None:
    """A part sent after completion is refused with 400."""
    data = user.make.data(3)
    upload = begin(user, len(data))
    complete(user, upload, send(user, upload, [data]))
    user.refused(400, lambda: part(user, upload, b"more"))


def test_upload_unknown(user: User) -> None:
    """404 in the envelope, for parts, completion and cancelling of an upload that is not there."""
    unknown = "upload_00000000000000000000"
    assert begin(user, 10).id != unknown
    for call in (
        lambda: user.sdk.uploads.parts.create(unknown, data=b"x"),
        lambda: user.sdk.uploads.complete(unknown, part_ids=["part_00000000000000000000"]),
        lambda: user.sdk.uploads.cancel(unknown),
    ):
        assert user.refused(404, call).type == "invalid_request_error"


def test_upload_file_chunked(user: User) -> None:
    """`uploads.upload_file_chunked` gives a file that is `processed` and has the very bytes."""
    data = user.make.data(20)
    done = user.sdk.uploads.upload_file_chunked(
        file=data, filename="chunked.jsonl", bytes=len(data), mime_type="application/jsonl", purpose="batch",
        part_size=1_000,
    )  # fmt: skip
    assert done.status == "completed"
    assert done.file and (done.file.filename, done.file.status) == ("chunked.jsonl", "processed")
    assert user.sdk.files.content(done.file.id).content == data
