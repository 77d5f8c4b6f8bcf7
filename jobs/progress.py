"""How a batch comes along: rows and tokens over time, and what failed. Reads what is committed, and nothing else."""

from dataclasses import dataclass
from datetime import datetime

import msgspec
from sqlalchemy import Connection, select, text

from jobs.errors import NotFound
from jobs.protocol import unix
from jobs.tables import batches

# Of a plot; fewer for runs so short that outcomes come in a few commits.
BUCKETS, LEAST_BUCKET_SECONDS = 60, 0.5
# Rates of now are those of the last sixth.
RECENT_BUCKETS = 10
MAX_FAILURE_GROUPS = 20


@dataclass(frozen=True)
class Pace:
    """What ended when: one number for each stretch of `seconds`, from the start of the run on."""

    began_at: int
    """Unix seconds."""
    seconds: float
    rows: list[int]
    tokens: list[float]
    """Of answers. A row counts with the mean of its shard: no row's own tokens are kept."""

    def rate(self, counts: list[int] | list[float]) -> float:
        """Return `rows` or `tokens` a second of lately; of the whole run, if nothing ended lately."""
        recent = counts[-RECENT_BUCKETS:]
        chosen = recent if any(recent) else counts
        return sum(chosen) / (len(chosen) * self.seconds) if chosen else 0.0


_SPAN = text(
    """
    SELECT coalesce(in_progress_at, created_at) AS began_at,
           coalesce(completed_at, failed_at, expired_at, cancelled_at, app_now()) AS until
    FROM batches WHERE id = :batch_id AND project_id = :project_id
    """
)
# Shard by shard along the key of `results`. In a batch of several models the lines of shards interleave. Rows that
# never ran have no status: they got their outcome all at once, at the end.
_ENDED = text(
    """
    SELECT ended.bucket, sum(ended.rows)::bigint AS rows,
           sum(ended.answered * s.output_tokens::double precision / greatest(s.completed, 1)) AS tokens
    FROM shards s CROSS JOIN LATERAL (
        SELECT floor(extract(epoch FROM r.created_at - CAST(:began_at AS timestamptz)) / :seconds)::int AS bucket,
               count(*) AS rows, count(*) FILTER (WHERE NOT r.is_error) AS answered
        FROM results r
        WHERE r.batch_id = s.batch_id AND r.line_no BETWEEN s.first_line AND s.last_line AND r.status_code IS NOT NULL
          AND (:is_single OR s.model_no = (
              SELECT q.model_no FROM requests q WHERE q.batch_id = r.batch_id AND q.line_no = r.line_no))
        GROUP BY 1
    ) AS ended
    WHERE s.batch_id = :batch_id GROUP BY 1
    """
)


def pace(connection: Connection, project_id: str, batch_id: str) -> Pace:
    """Return how many rows and tokens of a batch ended when.

    Raises:
        NotFound: no such batch in this project.
    """
    span = connection.execute(_SPAN, {"batch_id": batch_id, "project_id": project_id}).one_or_none()
    if span is None:
        message = f"No batch found with id '{batch_id}'."
        raise NotFound(message)
    seconds, count = _stretches(span.began_at, span.until)
    is_single = connection.execute(select(batches.c.model).where(batches.c.id == batch_id)).scalar_one() is not None
    asked = {"batch_id": batch_id, "began_at": span.began_at, "seconds": seconds, "is_single": is_single}
    rows, tokens = [0] * count, [0.0] * count
    for bucket in connection.execute(_ENDED, asked):
        place = min(max(bucket.bucket, 0), count - 1)
        rows[place] += bucket.rows
        tokens[place] += bucket.tokens
    return Pace(unix(span.began_at), seconds, rows, tokens)


def _stretches(began_at: datetime, until: datetime) -> tuple[float, int]:
    """Return how long a stretch is, and how many there are up to now."""
    length = max((until - began_at).total_seconds(), LEAST_BUCKET_SECONDS)
    seconds = max(length / BUCKETS, LEAST_BUCKET_SECONDS)
    return seconds, max(1, round(length / seconds))


@dataclass(frozen=True)
class Failures:
    """Requests of a batch that failed in the same way, and the first of them."""

    code: str
    status_code: int | None
    """None: they never ran."""
    requests: int
    line_no: int
    custom_id: str
    message: str
    """The error's words, not the prompt's."""


_FAILURES = text(
    """
    SELECT g.code, g.status_code, g.requests, g.line_no, q.custom_id, x.content
    FROM (
        SELECT code, status_code, count(*) AS requests, min(line_no) AS line_no FROM results
        WHERE batch_id = :batch_id AND is_error GROUP BY code, status_code
        ORDER BY requests DESC, code LIMIT :most
    ) AS g
    CROSS JOIN LATERAL (SELECT custom_id FROM requests WHERE batch_id = :batch_id AND line_no = g.line_no) AS q
    CROSS JOIN LATERAL (SELECT content FROM results WHERE batch_id = :batch_id AND line_no = g.line_no) AS x
    ORDER BY g.requests DESC, g.code
    """
)


class _Error(msgspec.Struct):
    message: str | None = None


class _Body(msgspec.Struct):
    error: _Error | None = None


class _Response(msgspec.Struct):
    body: _Body | None = None


class _Line(msgspec.Struct):
    response: _Response | None = None
    error: _Error | None = None


_decode = msgspec.json.Decoder(_Line).decode


def failures(connection: Connection, batch_id: str) -> list[Failures]:
    """Return the failed requests of a batch by their codes, the most frequent first. It is the caller's own batch."""
    rows = connection.execute(_FAILURES, {"batch_id": batch_id, "most": MAX_FAILURE_GROUPS})
    return [
        Failures(
            row.code or "unknown",
            row.status_code,
            row.requests,
            row.line_no,
            row.custom_id,
            _message(bytes(row.content)),
        )
        for row in rows
    ]


def _message(content: bytes | memoryview) -> str:
    try:
        line = _decode(content)
    except msgspec.MsgspecError:
        return ""
    error = line.error or (line.response and line.response.body and line.response.body.error)
    return (error.message if error else None) or ""


@dataclass(frozen=True)
class Words:
    """A line, or its beginning."""

    text: str
    bytes: int
    """Of the whole line."""
    is_whole: bool


@dataclass(frozen=True)
class Opened:
    """One request and what came of it, as they are in the files."""

    custom_id: str
    request: Words | None
    """None: the lines of its file are gone."""
    result: Words | None
    """None: it has none yet."""


_OPEN = text(
    """
    SELECT q.custom_id, substring(l.content FOR :most) AS request, octet_length(l.content) AS request_bytes,
           substring(x.content FOR :most) AS result, octet_length(x.content) AS result_bytes
    FROM batches b JOIN requests q ON q.batch_id = b.id
    LEFT JOIN lines l ON l.file_id = b.source_file_id AND l.line_no = q.line_no
    LEFT JOIN results x ON x.batch_id = b.id AND x.line_no = q.line_no
    WHERE b.id = :batch_id AND b.project_id = :project_id AND q.line_no = :line_no
    """
)


def open_row(connection: Connection, project_id: str, batch_id: str, line_no: int, *, most_bytes: int) -> Opened:
    """Return a request of a batch with its words, up to `most_bytes` of each line: both may be far too long to show.

    Raises:
        NotFound: no such batch in this project, or it has no request on this line.
    """
    asked = {"batch_id": batch_id, "project_id": project_id, "line_no": line_no, "most": most_bytes}
    if (row := connection.execute(_OPEN, asked).one_or_none()) is None:
        message = f"No request found on line {line_no} of batch '{batch_id}'."
        raise NotFound(message)
    return Opened(row.custom_id, _words(row.request, row.request_bytes), _words(row.result, row.result_bytes))


def _words(content: bytes | None, size: int) -> Words | None:
    if content is None:
        return None
    is_whole = len(content) == size
    # The cut may have gone through a character.
    return Words(bytes(content).decode("utf-8", "replace" if is_whole else "ignore"), size, is_whole)
