"""D1 to D4: files in and out.

D1  upload, HTTP to durable rows  / one COPY of the same rows, packed beforehand; also of a text as people write it
D2  the same upload               / a small service as it is often written (bench/naive_upload.py)
D3  download over HTTP            / psycopg reading the same rows with COPY in text form
D4  the API's peak memory above idle during D1 and D3
"""

from collections.abc import Callable, Iterator

import httpx2
from measure import ratios, row, seconds, spread
from memory import Peak
from plane import BIG_PROMPT, Plane, lines, prose, script

from api.stack.program import free_port
from jobs import pgcopy

ROUNDS = 5
LINES = 50_000


def report(plane: Plane) -> Iterator[str]:
    data = lines(LINES, BIG_PROMPT)
    plane.bare.execute("CREATE TABLE bare (LIKE lines INCLUDING ALL)")
    plane.upload(lines(100, 100))
    yield from _files(plane, data)
    yield _prose(plane, lines(LINES, BIG_PROMPT, corpus=prose()))
    plane.bare.execute("DROP TABLE bare")
    yield _naive(plane, data)


def _files(plane: Plane, data: bytes) -> Iterator[str]:
    packed = _pack(data)
    uploads, copies, downloads, reads = list[float](), [], [], []
    with Peak(plane.api.popen.pid) as peak:
        for _ in range(ROUNDS):
            copies.append(_copied(plane, packed))
            file_id = _uploaded(plane, data, uploads)
            reads.append(seconds(lambda: _read(plane)))
            downloads.append(seconds(lambda file_id=file_id: _download(plane, file_id)))  # type: ignore[misc]
            _forget(plane, file_id)
    yield _compared("D1 upload", data, uploads, copies, "0.43 / 0.72")
    yield _compared("D3 download", data, downloads, reads, "0.9 / 1.6")
    yield row("D4 API memory above idle", _size(data), f"{(peak.peak - peak.idle) / 1e6:.0f} MB", wanted="128 / 32 MB")


def _prose(plane: Plane, data: bytes) -> str:
    packed, uploads, copies = _pack(data), list[float](), []
    for _ in range(ROUNDS):
        copies.append(_copied(plane, packed))
        _forget(plane, _uploaded(plane, data, uploads))
    return _compared("D1 upload of prose", data, uploads, copies, "0.43 / 0.72")


def _copied(plane: Plane, packed: bytes) -> float:
    plane.bare.execute("TRUNCATE bare")
    return _timed(plane, lambda: _copy(plane, packed))


def _uploaded(plane: Plane, data: bytes, uploads: list[float]) -> str:
    """Upload a file; return its id, and add its seconds to `uploads`."""
    ids: list[str] = []
    uploads.append(_timed(plane, lambda: ids.append(plane.upload(data))))
    return ids[0]


def _timed(plane: Plane, action: Callable[[], object]) -> float:
    """Return the seconds of something that writes. What was written before is on disk by then, whoever wrote it."""
    plane.bare.execute("CHECKPOINT")
    return seconds(action)


def _forget(plane: Plane, file_id: str) -> None:
    """Let each round begin with an empty table, on either side: pages that were never used cost a machine more."""
    plane.http.delete(f"/files/{file_id}")
    plane.bare.execute("TRUNCATE lines")


def _compared(name: str, data: bytes, ours: list[float], bare: list[float], wanted: str) -> str:
    figures = spread(ours, " s"), spread(bare, " s"), spread(ratios(bare, ours))
    return row(name, _size(data), *figures, wanted=wanted)


def _size(data: bytes) -> str:
    return f"{len(data) / 1e6:.0f} MB, {LINES:,} lines"


def _pack(data: bytes) -> bytes:
    """Pack the rows of a file as COPY wants them."""
    rows = (
        pgcopy.row_start(5)
        + pgcopy.field(b"file")
        + pgcopy.int4(number)
        + pgcopy.field(b"row-%d" % (number - 1))
        + pgcopy.field(line)
        + pgcopy.int2(0)
        for number, line in enumerate(data.splitlines(keepends=True), 1)
    )
    return b"".join((pgcopy.HEADER, *rows, pgcopy.TRAILER))


def _copy(plane: Plane, packed: bytes) -> None:
    with plane.bare.cursor().copy("COPY bare FROM STDIN (FORMAT BINARY)") as copy:
        copy.write(packed)


def _read(plane: Plane) -> int:
    statement = "COPY (SELECT content FROM bare ORDER BY line_no) TO STDOUT"
    with plane.bare.cursor().copy(statement) as copy:
        return sum(len(piece) for piece in copy)


def _download(plane: Plane, file_id: str) -> int:
    with plane.http.stream("GET", f"/files/{file_id}/content") as reply:
        return sum(len(piece) for piece in reply.iter_bytes())


def _naive(plane: Plane, data: bytes) -> str:
    """Upload to the naive service and to ours, in turn."""
    port = free_port()
    argv = ["bench/naive_upload.py", str(port)]
    uploads, naive = list[float](), []
    with script(plane, "naive-upload", argv, "startup complete", NAIVE_DATABASE_URL=plane.stack.database_url):
        for _ in range(ROUNDS):
            plane.bare.execute("TRUNCATE naive")
            naive.append(_timed(plane, lambda: _upload_naively(port, data)))
            _forget(plane, _uploaded(plane, data, uploads))
    plane.bare.execute("DROP TABLE naive")
    return _compared("D2 upload / json.loads, jsonb", data, uploads, naive, "3 / 7")


def _upload_naively(port: int, data: bytes) -> None:
    reply = httpx2.post(f"http://127.0.0.1:{port}/files", files={"file": ("big.jsonl", data)}, timeout=300)
    assert reply.raise_for_status().json() == {"lines": LINES}
