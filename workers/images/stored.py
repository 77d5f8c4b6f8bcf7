"""Images that were uploaded, as Postgres shows them to the project that asks."""

from sqlalchemy import Engine

from jobs import content, db, files
from jobs.content import Source
from jobs.errors import InvalidRequest, NotFound
from workers.images.values import Problem, Stored, not_found, too_many_bytes

PURPOSE = "vision"


def look_up(engine: Engine, project_id: str, file_id: str, max_bytes: int) -> Stored | Problem:
    """Return an image of the project, without its bytes. Blocks.

    Raises:
        Unavailable: Postgres is away.
    """
    try:
        with db.reading(engine, project_id) as connection:
            row = files.find(connection, project_id, file_id)
    except (NotFound, InvalidRequest):
        # The other one: what Postgres has no room for is no id.
        return not_found(file_id)
    if row.purpose != PURPOSE:
        return not_found(file_id)
    if row.bytes > max_bytes:
        return too_many_bytes(max_bytes)
    return Stored(file_id, project_id, bytes(row.sha256), row.bytes)


def read(engine: Engine, stored: Stored) -> bytes | None:
    """Return the bytes of an image; None if it was deleted meanwhile. Blocks.

    Raises:
        Unavailable: Postgres is away.
    """
    data = b"".join(content.stream(engine, Source(stored.file_id, project_id=stored.project_id)))
    return data if len(data) == stored.length else None
