"""Files in parts, sent by the stock SDK to real processes."""

import asyncio
import hashlib
import io
import random
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
import services
from clients import User
from payloads import numbered

PART_BYTES = 100_000


@pytest.fixture
def user(running: services.Stack) -> Iterator[User]:
    user = User(running)
    yield user
    user.sdk.close()


def test_a_batch_of_a_file_in_parts(user: User, tmp_path: Path) -> None:
    data = numbered(3_000)
    assert len(data) > 3 * PART_BYTES
    path = tmp_path / "requests.jsonl"
    path.write_bytes(data)
    md5 = hashlib.md5(data).hexdigest()
    upload = user.sdk.uploads.upload_file_chunked(
        file=path, mime_type="application/jsonl", purpose="batch", part_size=PART_BYTES, md5=md5
    )
    assert (upload.status, upload.bytes, upload.filename) == ("completed", len(data), "requests.jsonl")
    assert upload.file is not None
    assert user.sdk.files.wait_for_processing(upload.file.id).purpose == "batch"
    assert user.sdk.files.content(upload.file.id).content == data
    batch = user.sdk.batches.create(
        input_file_id=upload.file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    batch = user.wait(batch.id)
    assert batch.status == "completed"
    assert set(user.results(batch)) == {f"row-{number}" for number in range(3_000)}


def test_bytes_in_memory_can_be_sent_in_parts(user: User) -> None:
    data = random.Random(3).randbytes(250_000)
    upload = user.sdk.uploads.upload_file_chunked(
        file=data, filename="a.bin", bytes=len(data), mime_type="b", purpose="user_data", part_size=PART_BYTES
    )
    assert upload.file is not None
    assert user.sdk.files.content(upload.file.id).content == data
    assert [file.id for file in user.sdk.files.list(purpose="user_data")] == [upload.file.id]


def test_the_asynchronous_client_sends_parts_too(running: services.Stack, tmp_path: Path) -> None:
    data = random.Random(4).randbytes(250_000)
    path = tmp_path / "a.bin"
    path.write_bytes(data)

    async def run() -> None:
        async with openai.AsyncOpenAI(base_url=running.base_url, api_key=running.key(), max_retries=0) as sdk:
            upload = await sdk.uploads.upload_file_chunked(
                file=path, mime_type="b", purpose="user_data", part_size=PART_BYTES
            )
            in_memory = await sdk.uploads.upload_file_chunked(
                file=data, filename="b", bytes=len(data), mime_type="b", purpose="vision", part_size=PART_BYTES
            )
            for made in (upload, in_memory):
                assert made.file is not None
                assert (await sdk.files.content(made.file.id)).content == data

    asyncio.run(run())


def test_parts_may_be_sent_at_once_and_out_of_order(running: services.Stack) -> None:
    pieces = [random.Random(number).randbytes(1_500_000) for number in range(4)]

    async def run() -> None:
        async with openai.AsyncOpenAI(base_url=running.base_url, api_key=running.key(), max_retries=0) as sdk:
            upload = await sdk.uploads.create(
                bytes=sum(map(len, pieces)), filename="a", mime_type="b", purpose="user_data"
            )
            sent = [sdk.uploads.parts.create(upload.id, data=io.BytesIO(piece)) for piece in reversed(pieces)]
            parts = reversed(await asyncio.gather(*sent))
            done = await sdk.uploads.complete(upload.id, part_ids=[part.id for part in parts])
            assert done.file is not None
            assert (await sdk.files.content(done.file.id)).content == b"".join(pieces)

    asyncio.run(run())


def test_the_client_learns_why_a_part_is_refused(user: User) -> None:
    """While it still sends it: the part is large, and refused before it is read."""
    upload = user.sdk.uploads.create(bytes=30_000_000, filename="a", mime_type="b", purpose="user_data")
    assert user.sdk.uploads.cancel(upload.id).status == "cancelled"
    with pytest.raises(openai.BadRequestError) as caught:
        user.sdk.uploads.parts.create(upload.id, data=b"x" * 30_000_000)
    assert (caught.value.code, caught.value.param) == ("upload_cancelled", "upload_id")


def test_an_image_is_stored_as_it_is(user: User) -> None:
    image = b"\x89PNG\r\n\x1a\n" + random.Random(5).randbytes(100_000)
    file = user.sdk.files.create(file=("a.png", image), purpose="vision")
    assert user.sdk.files.content(file.id).content == image
    with pytest.raises(openai.BadRequestError, match="Supported values are: 'batch', 'vision', 'user_data'"):
        user.sdk.files.create(file=("a", b"{}\n"), purpose="fine-tune")
