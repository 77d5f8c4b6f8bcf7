import threading
import time
from typing import Any

import pytest
import services
from payloads import jsonl, numbered, request
from web import Client, no_reader_left

from jobs import content
from jobs.errors import DamagedFile


def test_pages_are_small_however_long_the_lines_are(domain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.content.PAGE_BYTES", 10_000)
    monkeypatch.setattr("jobs.content.MAX_PAGE_LINES", 50)
    sizes = [10] * 120 + [30_000, 30_000, 10] + [9_000] * 5 + [10] * 60
    data = jsonl(request(f"r{number}", "x" * size) for number, size in enumerate(sizes))
    pages = list(content.stream(domain.engine, content.Source(domain.upload(data))))
    assert b"".join(pages) == data
    assert len(pages) > 5
    assert max(len(page) for page in pages) < 10_000 + 31_000


def lines_read(domain: Any) -> int:
    """Return how many rows of `lines` Postgres has read so far. A session's are counted when it has ended."""
    domain.engine.dispose()
    others = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    services.wait_until(lambda: not domain.execute(f"{others} AND backend_type = 'client backend'"), "they end", 10)
    (row,) = domain.execute(
        "SELECT idx_tup_fetch + seq_tup_read AS rows FROM pg_stat_user_tables WHERE relname = 'lines'"
    )
    return int(row.rows)


def test_a_page_reads_little_more_than_its_own_lines(domain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each page once read all lines to the end of the file: a download took the square of its lines."""
    monkeypatch.setattr("jobs.content.MAX_PAGE_LINES", 50)
    source = content.Source(domain.upload(numbered(2_000)))
    before = lines_read(domain)
    assert len(list(content.stream(domain.engine, source))) == 40
    assert 2_000 <= lines_read(domain) - before < 4_000


def test_no_transaction_is_open_between_pages(domain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.content.MAX_PAGE_LINES", 2)
    data = jsonl(request(f"r{number}") for number in range(10))
    stream = content.stream(domain.engine, content.Source(domain.upload(data)))
    next(stream)
    busy = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in transaction%'"
    services.wait_until(lambda: not domain.execute(busy), "the page that is read ahead is read", 5)
    stream.close()
    no_reader_left()


def test_a_client_that_leaves_waits_for_nothing(domain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing runs on the API's event loop."""
    monkeypatch.setattr("jobs.content.MAX_PAGE_LINES", 2)
    read_page, held = content._read_page, threading.Event()

    def slow(*arguments: Any) -> content.Page:
        if arguments[2].last_line:
            held.wait(30)
        return read_page(*arguments)

    monkeypatch.setattr("jobs.content._read_page", slow)
    stream = content.stream(domain.engine, content.Source(domain.upload(jsonl(request(f"r{n}") for n in range(10)))))
    next(stream)
    started = time.monotonic()
    stream.close()
    assert time.monotonic() - started < 10
    held.set()
    no_reader_left()


def test_a_file_without_lines_is_empty(domain: Any) -> None:
    assert list(content.stream(domain.engine, content.Source("", "batch_nope"))) == []


def test_any_range_is_the_slice(domain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.content.PAGE_BYTES", 300)
    data = b"\n" + jsonl(request(f"r{number}", "x" * (number * 37 % 90)) for number in range(20))
    source = content.Source(domain.upload(data))
    for start in range(0, len(data), 97):
        for length in (1, 50, 333, len(data)):
            got = b"".join(content.stream_range(domain.engine, source, start, length))
            assert got == data[start : start + length]
    assert list(content.stream_range(domain.engine, content.Source("file-nope"), 0, 10)) == []
    no_reader_left()


def damage(domain: Any, file_id: str) -> None:
    """Flip a byte of a file's last line behind Postgres' back, as far as that goes."""
    domain.execute(
        "UPDATE lines SET content = set_byte(content, 9, get_byte(content, 9) # 1) "
        "WHERE file_id = :id AND line_no = (SELECT max(line_no) FROM lines WHERE file_id = :id)",
        id=file_id,
    )


def test_f52_a_file_with_a_flipped_byte_never_comes_whole(
    domain: Any, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.content.MAX_PAGE_LINES", 50)
    file_id = client.file_id(200)
    path = f"/v1/files/{file_id}/content"
    assert client.call("GET", path).content == numbered(200)
    damage(domain, file_id)
    received = b""
    # The server's words for a reply that was already under way.
    with (
        pytest.raises(RuntimeError, match="already started") as caught,
        client.http.stream("GET", path, headers=client.headers) as response,
    ):
        length = int(response.headers["content-length"])
        for piece in response.iter_bytes():
            received += piece
    assert isinstance(caught.value.__cause__, DamagedFile)
    assert len(received) < length, "the client can tell"
    damage(domain, file_id)  # Twice is not at all.


def test_a_file_of_one_byte_and_an_empty_one_are_checked_too(domain: Any, client: Client) -> None:
    for data in (b"x", b""):
        made = client.call("POST", "/v1/files", data={"purpose": "user_data"}, files={"file": ("a", data)})
        if made.status_code == 200:
            assert client.call("GET", f"/v1/files/{made.json()['id']}/content").content == data
