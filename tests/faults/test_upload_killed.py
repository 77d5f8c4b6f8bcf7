"""F54: the API is killed when a part of an upload is there. Nobody sees half a file, and nothing of it stays."""

import http.client
from collections.abc import Iterator

import invariants
import pytest
import services
from clients import User
from killing import Backstage
from payloads import numbered

from jobs.blocks import FLUSH_BYTES

DATA = numbered(30_000, lambda number: f"text {number} " * 120)
BOUNDARY = "end-of-part"
HEAD = (
    f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
).encode()
TAIL = f"\r\n--{BOUNDARY}--\r\n".encode()


@pytest.fixture
def backstage(stack: services.Stack) -> Iterator[Backstage]:
    made = Backstage(stack)
    yield made
    made.close()


def send_some(stack: services.Stack, key: str, share: float) -> http.client.HTTPConnection:
    """Begin an upload, and stop when a share of the file is sent."""
    connection = http.client.HTTPConnection("127.0.0.1", stack.port, timeout=60)
    connection.putrequest("POST", "/v1/files")
    connection.putheader("authorization", f"Bearer {key}")
    connection.putheader("content-type", f"multipart/form-data; boundary={BOUNDARY}")
    connection.putheader("content-length", str(len(HEAD) + len(DATA) + len(TAIL)))
    connection.endheaders()
    connection.send(HEAD + DATA[: int(len(DATA) * share)])
    return connection


def test_no_half_file_stays(stack: services.Stack, backstage: Backstage) -> None:
    # A fifth is less than a block, half is more than one.
    assert 0.3 * len(DATA) < FLUSH_BYTES < 0.5 * len(DATA)
    with_quota = {"PROMPTMILL_LIMITS__QUOTAS__MAX_BYTES": str(len(DATA) + 1_000)}
    stack.settings = {**stack.settings, **with_quota}
    committed = "SELECT count(DISTINCT file_id) FROM lines"
    for begun, share in ((0, 0.2), (1, 0.5), (2, 0.8), (3, 1)):
        api = stack.api()
        connection = send_some(stack, backstage.key, share)
        services.wait_until(lambda begun=begun: backstage.execute(committed)[0].count == begun, "its rows are there")  # type: ignore[misc]
        api.kill()
        connection.close()
    stack.api()
    user = User(stack, backstage.key)
    assert user.sdk.files.list().data == []
    file = user.sdk.files.create(file=("a.jsonl", DATA), purpose="batch")
    assert user.sdk.files.content(file.id).content == DATA, "what was never whole counts for nothing"
    user.sdk.close()
    backstage.execute("UPDATE files SET created_at = created_at - interval '1 day' WHERE status = 'uploading'")
    backstage.sweep()
    assert [row.file_id for row in backstage.execute("SELECT DISTINCT file_id FROM lines")] == [file.id]
    invariants.check(backstage.engine, acknowledged={file.id: DATA})
