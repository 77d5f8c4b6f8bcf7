"""API keys: `pm_<id>_<secret>`, bound to a project. Only the SHA-256 of the secret is stored.

The secret has 192 random bits, so a fast hash is enough: there is nothing to guess. The prefix lets scanners find
leaked keys.
"""

import hashlib
import hmac
import secrets
from dataclasses import dataclass

from sqlalchemy import Connection, func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from jobs import ids
from jobs.errors import AuthenticationFailed, InvalidRequest, NotFound
from jobs.tables import api_keys, projects

PREFIX = "pm"
DEFAULT_PROJECT = "default"
MAX_NAME_CHARS = 100


@dataclass(frozen=True)
class Caller:
    """Who sent a call."""

    project_id: str
    key_id: str


@dataclass(frozen=True)
class KeyInfo:
    """What may be shown of a key."""

    id: str
    name: str
    project: str
    created_at: str
    revoked: bool


def create(connection: Connection, *, project: str, name: str) -> str:
    """Make a key for the project, which is made too if it is new. The key is returned once and never again.

    Raises:
        InvalidRequest: a name is empty, too long, or holds control characters.
    """
    if not project or not (project + name).isprintable() or max(len(project), len(name)) > MAX_NAME_CHARS:
        message = f"Names have at most {MAX_NAME_CHARS} printable characters, and a project's at least one."
        raise InvalidRequest(message)
    project_id = _project_id(connection, project)
    key_id, secret = secrets.token_hex(6), secrets.token_hex(24)
    values = {"id": key_id, "project_id": project_id, "name": name, "secret_hash": _hash(secret)}
    connection.execute(insert(api_keys).values(values))
    return f"{PREFIX}_{key_id}_{secret}"


def _project_id(connection: Connection, name: str) -> str:
    statement = upsert(projects).values(id=ids.new_project_id(), name=name)
    updated = statement.on_conflict_do_update(index_elements=["name"], set_={"name": name})
    return str(connection.execute(updated.returning(projects.c.id)).scalar_one())


def find_project(connection: Connection, name: str) -> str:
    """Return the id of the project with this name.

    Raises:
        NotFound: there is none.
    """
    project_id = connection.execute(select(projects.c.id).where(projects.c.name == name)).scalar_one_or_none()
    if project_id is None:
        message = f"There is no project '{name}'. A project is made with its first key."
        raise NotFound(message)
    return str(project_id)


def authenticate(connection: Connection, key: str) -> Caller:
    """Return who the key stands for.

    Raises:
        AuthenticationFailed: there is no such key, or it was revoked.
    """
    prefix, _, rest = key.partition("_")
    key_id, _, secret = rest.partition("_")
    if prefix != PREFIX or not key_id.isalnum() or not key_id.isascii():
        raise AuthenticationFailed
    statement = select(api_keys.c.project_id, api_keys.c.secret_hash)
    row = connection.execute(statement.where(api_keys.c.id == key_id, api_keys.c.revoked_at.is_(None))).one_or_none()
    # Compared even when there is no such key, so that the answer takes as long.
    if not hmac.compare_digest(_hash(secret), row.secret_hash if row else bytes(32)) or row is None:
        raise AuthenticationFailed
    return Caller(row.project_id, key_id)


def is_valid(connection: Connection, key: str) -> bool:
    """Tell whether the key opens anything."""
    try:
        authenticate(connection, key)
    except AuthenticationFailed:
        return False
    return True


def revoke(connection: Connection, key: str) -> None:
    """Make a key, or the key with this id, useless from the next call on.

    Raises:
        NotFound: there is no such key.
    """
    key_id = key.removeprefix(f"{PREFIX}_").partition("_")[0]
    statement = update(api_keys).where(api_keys.c.id == key_id, api_keys.c.revoked_at.is_(None))
    if not connection.execute(statement.values(revoked_at=func.app_now())).rowcount:
        message = f"No API key with id '{key_id}' is in use."
        raise NotFound(message)


def list_all(connection: Connection) -> list[KeyInfo]:
    """Return what may be shown of every key, oldest first."""
    statement = select(api_keys, projects.c.name.label("project")).join(projects).order_by(api_keys.c.created_at)
    return [
        KeyInfo(row.id, row.name, row.project, row.created_at.isoformat(timespec="seconds"), row.revoked_at is not None)
        for row in connection.execute(statement)
    ]


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
