"""How much a project may have. What is not set for a project is the setting's; what neither sets is unlimited.

    files, bytes                 stored: uploads that are neither deleted nor expired, and those that take parts, with
                                 what they were declared; result files do not count
    open batches, open requests  of batches that have not ended
    enqueued tokens              the same, in tokens: a batch beyond it is created and fails (contract, L1)
    calls a minute               a bucket that is refilled continuously

All but the last are counted from the rows they are about, so what ends or is deleted is given back by itself. Two
calls of one project at once are counted one after the other.
"""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, select, text, update

from jobs.errors import InvalidRequest, NotFound, QuotaExceeded
from jobs.protocol import BatchError
from jobs.settings import Quotas
from jobs.tables import projects

# An estimate that needs no tokenizer: English has about four bytes a token.
BYTES_PER_TOKEN = 4
# When to look again for what frees itself: batches end. Milliseconds.
RETRY_OPEN_MS = 10_000
MAX_QUOTA = 2**53
NAMES = tuple(Quotas.model_fields)


def find(connection: Connection, project_id: str, defaults: Quotas) -> Quotas:
    """Return what the project may have."""
    row = connection.execute(select(*(projects.c[name] for name in NAMES)).where(projects.c.id == project_id)).one()
    own = {name: value for name, value in row._mapping.items() if value is not None}  # noqa: SLF001  its public name
    return defaults.model_copy(update=own)


def change(connection: Connection, project: str, limits: dict[str, int | None]) -> None:
    """Set limits of a project by name; None is the setting's again.

    Raises:
        NotFound: there is no such project.
        InvalidRequest: a limit is negative or absurd.
    """
    for name, value in limits.items():
        if value is not None and not 0 <= value <= MAX_QUOTA:
            message = f"Invalid '{name}': expected an integer from 0 to {MAX_QUOTA}."
            raise InvalidRequest(message, param=name)
    if not connection.execute(update(projects).where(projects.c.name == project).values(limits)).rowcount:
        message = f"There is no project '{project}'."
        raise NotFound(message)


def list_all(connection: Connection) -> list[dict[str, Any]]:
    """Return the name and the limits of every project, by name."""
    columns = (projects.c[name] for name in NAMES)
    rows = connection.execute(select(projects.c.name, *columns).order_by(projects.c.name))
    return [dict(row._mapping) for row in rows]  # noqa: SLF001  its public name


_TAKE_CALL = text(
    """
    INSERT INTO call_budgets AS had (project_id, calls) VALUES (:project_id, :most - 1)
    ON CONFLICT (project_id) DO UPDATE
    SET calls = least(:most, had.calls + greatest(0, extract(epoch FROM app_now() - had.refilled_at)) * :most / 60) - 1,
        refilled_at = greatest(app_now(), had.refilled_at)
    WHERE least(:most, had.calls + greatest(0, extract(epoch FROM app_now() - had.refilled_at)) * :most / 60) >= 1
    RETURNING calls
    """
)
_WAIT = text(
    """
    SELECT (1 - calls) * 60 / :most - extract(epoch FROM app_now() - refilled_at)
    FROM call_budgets WHERE project_id = :project_id
    """
)


def take_call(connection: Connection, project_id: str, most: int | None) -> None:
    """Count one call of the project.

    Raises:
        QuotaExceeded: it had its calls of this minute; says when the next one is due.
    """
    if most is None:
        return
    values = {"project_id": project_id, "most": float(most)}
    if most > 0 and connection.execute(_TAKE_CALL, values).one_or_none():
        return
    wait = float(connection.execute(_WAIT, values).scalar_one()) if most > 0 else 60.0
    message = f"Rate limit reached: {most} calls a minute. Please try again in {max(wait, 0.001):.3f} s."
    raise QuotaExceeded(message, code="rate_limit_exceeded", retry_after_ms=max(1, round(wait * 1_000)))


def alone(connection: Connection, project_id: str) -> None:
    """Let no other call of the project count until this transaction has ended."""
    lock = text("SELECT pg_advisory_xact_lock(hashtextextended('quota ' || :project_id, 0))")
    connection.execute(lock, {"project_id": project_id})


_STORED = text(
    """
    SELECT count(*) AS files, coalesce(sum(bytes), 0)::bigint AS bytes FROM (
        SELECT bytes FROM files
        WHERE project_id = :project_id AND status = 'processed' AND batch_id IS NULL AND deleted_at IS NULL
          AND (expires_at IS NULL OR expires_at > app_now())
        UNION ALL
        SELECT bytes FROM uploads WHERE project_id = :project_id AND status = 'pending' AND expires_at > app_now()
    ) AS had
    """
)


def admit_file(connection: Connection, project_id: str, defaults: Quotas, *, size: int) -> None:
    """Let the project have one more file of `size` bytes.

    Raises:
        QuotaExceeded: it has as many files or bytes as it may have.
    """
    quota = find(connection, project_id, defaults)
    if quota.max_files is None and quota.max_bytes is None:
        return
    alone(connection, project_id)
    stored = connection.execute(_STORED, {"project_id": project_id}).one()
    if quota.max_files is not None and stored.files >= quota.max_files:
        message = f"The project has {stored.files} files and may have {quota.max_files}. Delete some first."
        raise QuotaExceeded(message, code="file_quota_exceeded")
    if quota.max_bytes is not None and stored.bytes + size > quota.max_bytes:
        message = (
            f"The project's files have {stored.bytes} bytes and may have {quota.max_bytes}; this one has {size}. "
            "Delete some first."
        )
        raise QuotaExceeded(message, code="storage_quota_exceeded")


_OPEN = text(
    """
    SELECT count(DISTINCT b.id) AS batches, coalesce(sum(s.total), 0)::bigint AS requests
    FROM batches b LEFT JOIN shards s ON s.batch_id = b.id
    WHERE b.project_id = :project_id AND b.status IN ('validating', 'in_progress', 'finalizing', 'cancelling')
    """
)
_ENQUEUED = text(
    """
    SELECT coalesce(sum(enqueued_tokens), 0)::bigint FROM batches
    WHERE project_id = :project_id AND status IN ('validating', 'in_progress', 'finalizing', 'cancelling')
    """
)


@dataclass(frozen=True)
class Work:
    """What a new batch would add to its project."""

    requests: int
    tokens: int


def admit_batch(connection: Connection, project_id: str, quota: Quotas, work: Work) -> None:
    """Let the project have one more open batch.

    Raises:
        QuotaExceeded: it has as many open batches or requests as it may have.
    """
    if quota.max_open_batches is None and quota.max_open_requests is None:
        return
    alone(connection, project_id)
    had = connection.execute(_OPEN, {"project_id": project_id}).one()
    if quota.max_open_batches is not None and had.batches >= quota.max_open_batches:
        message = f"The project has {had.batches} batches that have not ended and may have {quota.max_open_batches}."
        raise QuotaExceeded(message, code="batch_quota_exceeded", retry_after_ms=RETRY_OPEN_MS)
    if quota.max_open_requests is not None and had.requests + work.requests > quota.max_open_requests:
        message = (
            f"The project's open batches have {had.requests} requests and may have {quota.max_open_requests}; "
            f"this one has {work.requests}."
        )
        raise QuotaExceeded(message, code="request_quota_exceeded", retry_after_ms=RETRY_OPEN_MS)


def token_problem(connection: Connection, project_id: str, quota: Quotas, work: Work) -> BatchError | None:
    """Return the problem of a batch that would bring the project above its enqueued tokens; None if it would not."""
    if quota.max_enqueued_tokens is None:
        return None
    alone(connection, project_id)
    had = connection.execute(_ENQUEUED, {"project_id": project_id}).scalar_one()
    if had + work.tokens <= quota.max_enqueued_tokens:
        return None
    message = (
        f"Enqueued token limit reached for your project. Limit: {quota.max_enqueued_tokens} enqueued tokens. "
        "Please try again once some in_progress batches have been completed. "
        f"This batch has about {work.tokens}, the others {had}."
    )
    return BatchError(code="token_limit_exceeded", message=message)
