"""Removes what nobody can reach any more."""

from sqlalchemy import Connection, text

from jobs import idempotency

# In any order: one that cannot be swept must not come first every time.
# Files that nobody can see: deleted, expired, or an upload that never ended. A batch that is not over still reads its
# source.
_GONE = text(
    """
    SELECT f.id, f.batch_id FROM files f
    WHERE f.swept_at IS NULL
      AND (f.deleted_at IS NOT NULL OR f.expires_at <= app_now()
           OR (f.status = 'uploading' AND f.created_at < app_now() - make_interval(secs => :unfinished_seconds)))
      AND NOT EXISTS (SELECT FROM batches b WHERE b.source_file_id = f.id
                      AND b.status IN ('validating', 'in_progress', 'finalizing', 'cancelling'))
    ORDER BY random() LIMIT 1 FOR UPDATE SKIP LOCKED
    """
)
# Asked again once the file is locked: a batch may have been created from it in the meantime.
_IN_USE = text(
    """
    SELECT FROM batches WHERE source_file_id = :id
    AND status IN ('validating', 'in_progress', 'finalizing', 'cancelling') LIMIT 1
    """
)
_DROP_LINES = text("DELETE FROM lines WHERE file_id = :id")
_DROP_RESULTS = text("DELETE FROM results WHERE batch_id = :batch_id AND is_error = (:id LIKE '%-error')")
_SWEPT = text("UPDATE files SET swept_at = app_now() WHERE id = :id")


def sweep_file(connection: Connection, *, unfinished_seconds: float) -> bool:
    """Delete the lines or results of one file that nobody can see; return whether there was one.

    The file's own row stays as a tombstone: listings keep their place, and an id is never used twice.
    """
    file = connection.execute(_GONE, {"unfinished_seconds": unfinished_seconds}).one_or_none()
    if file is None or connection.execute(_IN_USE, {"id": file.id}).first() is not None:
        return False
    if file.batch_id is None:
        connection.execute(_DROP_LINES, {"id": file.id})
    else:
        connection.execute(_DROP_RESULTS, {"id": file.id, "batch_id": file.batch_id})
    idempotency.forget_object(connection, file.id)
    connection.execute(_SWEPT, {"id": file.id})
    return True
