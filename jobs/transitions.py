"""Moves batches and shards from state to state: compare-and-set, one statement each.

Triggers check the same rules once more (migration 0001).
"""

from sqlalchemy import Connection, func, text, update

from jobs import outbox
from jobs.errors import StateConflict
from jobs.states import TERMINAL, BatchStatus, is_legal
from jobs.tables import batches


def move(connection: Connection, batch_id: str, before: BatchStatus, after: BatchStatus) -> None:
    """Set the status and its time; with a terminal one, write the messages to the webhooks that want to know.

    Raises:
        StateConflict: the batch is not in `before` any more, or the step is not legal.
    """
    if not is_legal(before, after):
        message = f"A batch does not go from '{before}' to '{after}'."
        raise StateConflict(message)
    statement = (
        update(batches)
        .where(batches.c.id == batch_id, batches.c.status == before)
        .values({"status": after, f"{after}_at": func.app_now()})
    )
    if not connection.execute(statement).rowcount:
        message = f"The batch is no longer '{before}'."
        raise StateConflict(message)
    if after in TERMINAL:
        outbox.announce(connection, batch_id, after)


def stop_queued(connection: Connection, batch_id: str) -> None:
    """Stop the shards of a batch that nobody runs. Their missing outcomes are written when the batch is settled."""
    statement = text(
        """
        UPDATE shards SET state = 'stopped' WHERE id IN (
            SELECT id FROM shards WHERE batch_id = :batch_id AND state = 'queued' ORDER BY id FOR UPDATE)
        """
    )
    connection.execute(statement, {"batch_id": batch_id})
