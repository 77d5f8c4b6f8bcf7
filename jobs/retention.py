"""Removes what nobody can reach any more."""

from sqlalchemy import Connection, text

from jobs import blocks, idempotency

# In any order: one that cannot be swept must not come first every time.
# Files that nobody can see: deleted, expired, an upload that never ended, or a part of an upload that takes no more.
# A batch that is not over still reads its source; a call that completes an upload may still read parts when it expires.
_GONE = text(
    """
    SELECT f.id, f.batch_id FROM files f
    WHERE f.swept_at IS NULL
      AND (f.deleted_at IS NOT NULL OR f.expires_at <= app_now()
           OR (f.status = 'uploading' AND f.created_at < app_now() - make_interval(secs => :unfinished_seconds))
           OR (f.status = 'part' AND NOT EXISTS (
               SELECT FROM uploads u WHERE u.id = f.upload_id AND u.status = 'pending'
               AND u.expires_at > app_now() - make_interval(secs => :unfinished_seconds))))
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
_DROP_RESULTS = text("DELETE FROM results WHERE batch_id = :batch_id AND is_error = (:id LIKE '%-error')")
# What is being swept can neither be published nor be run again: some of it may be gone.
_BEGIN = text("UPDATE files SET sweep_began_at = coalesce(sweep_began_at, app_now()) WHERE id = :id")
_SWEPT = text("UPDATE files SET swept_at = app_now() WHERE id = :id")


def sweep_file(connection: Connection, *, unfinished_seconds: float) -> bool:
    """Delete lines or results of one file that nobody can see; return whether there was one.

    A very large file takes more than one sweep.
    The file's own row stays as a tombstone: listings keep their place, and an id is never used twice.
    """
    file = connection.execute(_GONE, {"unfinished_seconds": unfinished_seconds}).one_or_none()
    if file is None:
        return False
    if connection.execute(_IN_USE, {"id": file.id}).first() is not None:
        return True
    idempotency.forget_object(connection, file.id)
    connection.execute(_BEGIN, {"id": file.id})
    if file.batch_id is None:
        if not blocks.drop(connection, file.id):
            return True
    else:
        connection.execute(_DROP_RESULTS, {"id": file.id, "batch_id": file.batch_id})
    connection.execute(_SWEPT, {"id": file.id})
    return True
