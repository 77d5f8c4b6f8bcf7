"""Makes an object once, however often the call is repeated.

Two kinds of repetition, in one table:

    with an Idempotency-Key    the same key and the same body give the same object; another body is refused
    by the SDK itself          it sends no key, but counts its retries (`x-stainless-retry-count`): a retry whose body
                               and API key are those of a call of the last hour is that call. Of two equal calls that
                               were meant as two, a retry cannot say which one it repeats: that takes two keys

The row of a call is written in the transaction that makes the object. A repetition that comes while the first call is
still at work waits for it on that row.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass

from pydantic import BaseModel
from sqlalchemy import Connection, delete, func, text

from jobs.errors import StateConflict
from jobs.keys import Caller
from jobs.tables import calls

MAX_KEY_CHARS = 255
# How long a call is remembered, seconds: an Idempotency-Key for a day, as its users expect; what the SDK repeats for an
# hour, since it waits ten minutes for each answer and tries three times (openai-python `_constants.py`).
KEY_SECONDS, RETRY_SECONDS = 86_400, 3_600


@dataclass(frozen=True)
class Call:
    """How a call says whether it was made before."""

    caller: Caller
    path: str
    key: str | None = None
    """Its Idempotency-Key."""
    is_retry: bool = False
    """The SDK says that it has sent it before."""


def fingerprint(asked: BaseModel) -> bytes:
    """Return what tells one body from another."""
    # As ASCII: it may be taken before the parameters are looked at, and they may not be valid Unicode.
    return hashlib.sha256(json.dumps(asked.model_dump()).encode()).digest()


# A row that is too old counts as none. A first call without a key takes the place of an equal one before it: two equal
# batches may be what its client wants.
_TAKE = text(
    """
    INSERT INTO calls (project_id, key, fingerprint, object_id) VALUES (:project_id, :key, :fingerprint, '')
    ON CONFLICT (project_id, key) DO UPDATE
    SET fingerprint = excluded.fingerprint, object_id = '', created_at = app_now()
    WHERE :is_first OR calls.created_at < app_now() - make_interval(secs => :seconds)
    RETURNING key
    """
)
_FIND = text("SELECT fingerprint, object_id FROM calls WHERE project_id = :project_id AND key = :key")
_NOTE = text("UPDATE calls SET object_id = :object_id WHERE project_id = :project_id AND key = :key")


def once(connection: Connection, call: Call, fingerprint: bytes, make: Callable[[], str]) -> tuple[str, bool]:
    """Return the id of the call's object, and whether it was made just now.

    Args:
        connection: `make` works in its transaction.
        call: who calls, and how.
        fingerprint: SHA-256 of what is asked for.
        make: makes the object and returns its id.

    Raises:
        StateConflict: the Idempotency-Key was used for something else.
    """
    name = f"key {call.path} {call.key}" if call.key else f"body {call.path} {call.caller.key_id} {fingerprint.hex()}"
    row = {"project_id": call.caller.project_id, "key": name}
    seconds = KEY_SECONDS if call.key else RETRY_SECONDS
    first = {"is_first": not call.key and not call.is_retry, "seconds": seconds, "fingerprint": fingerprint}
    if connection.execute(_TAKE, row | first).one_or_none() is None:
        before = connection.execute(_FIND, row).one()
        if bytes(before.fingerprint) != fingerprint:
            message = "This Idempotency-Key was used with other parameters."
            raise StateConflict(message, code="idempotency_key_reused", param="Idempotency-Key")
        return str(before.object_id), False
    object_id = make()
    connection.execute(_NOTE, row | {"object_id": object_id})
    return object_id, True


def forget_object(connection: Connection, object_id: str) -> None:
    """Remove the calls that made an object which is gone: repeated, they make a new one.

    Called before the object itself is locked: a repeated call locks in this order too.
    """
    connection.execute(delete(calls).where(calls.c.object_id == object_id))


def forget(connection: Connection) -> None:
    """Remove calls that are too old to count."""
    old = func.app_now() - func.make_interval(0, 0, 0, 0, 0, 0, KEY_SECONDS)
    connection.execute(delete(calls).where(calls.c.created_at < old))
