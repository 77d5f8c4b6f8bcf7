"""API keys: `pm_<id>_<secret><checksum>`, bound to a project. Only the SHA-256 of secret and checksum is stored.

The secret has 192 random bits, so a fast hash is enough: there is nothing to guess. Prefix and checksum (CRC-32 of all
before it) let scanners find leaked keys, `pm_[0-9a-f]{12}_[0-9a-f]{56}`, and tell them from what only looks like one.
"""

import hashlib
import hmac
import secrets
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any, Literal

from sqlalchemy import Connection, Row, func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from jobs import ids
from jobs.errors import AuthenticationFailed, InvalidRequest, NotFound, PermissionDenied
from jobs.tables import api_keys, projects

PREFIX = "pm"
# Keys of earlier releases end here.
SECRET_CHARS = 48
DEFAULT_PROJECT = "default"
MAX_NAME_CHARS = 100
IN_USE = api_keys.c.revoked_at.is_(None) & (api_keys.c.expires_at.is_(None) | (api_keys.c.expires_at > func.app_now()))


class Scope(StrEnum):
    """What a key may be allowed to do. Without a choice it may do everything."""

    FILES_READ = "files.read"
    FILES_WRITE = "files.write"
    BATCHES_READ = "batches.read"
    BATCHES_WRITE = "batches.write"
    WEBHOOKS_READ = "webhooks.read"
    WEBHOOKS_WRITE = "webhooks.write"
    MODELS_READ = "models.read"
    EVERYTHING = "*"


@dataclass(frozen=True)
class Caller:
    """Who sent a call."""

    project_id: str
    key_id: str
    scopes: frozenset[str] = frozenset({Scope.EVERYTHING})
    calls_per_minute: int | None = None
    """The project's own limit; None: the setting's."""

    def may(self, scope: str) -> bool:
        """Tell whether the key has this scope."""
        return Scope.EVERYTHING in self.scopes or scope in self.scopes

    def require(self, scopes: Iterable[str]) -> None:
        """Go on if the key has all these scopes.

        Raises:
            PermissionDenied: it has not; they are named.
        """
        missing = {scope for scope in scopes if not self.may(scope)}
        if missing:
            message = f"The API key has insufficient permissions. Missing scopes: {', '.join(sorted(missing))}."
            raise PermissionDenied(message)


@dataclass(frozen=True)
class KeyInfo:
    """What may be shown of a key."""

    id: str
    name: str
    project: str
    created_at: str
    scopes: str
    expires_at: str
    state: Literal["in use", "revoked", "expired"]


def create(
    connection: Connection,
    *,
    project: str,
    name: str,
    scopes: Sequence[Scope] = (Scope.EVERYTHING,),
    lifetime: timedelta | None = None,
) -> str:
    """Make a key for the project, which is made too if it is new. The key is returned once and never again.

    Raises:
        InvalidRequest: a name is empty, too long, or holds control characters; or the key would never be valid.
    """
    if not scopes or (lifetime is not None and lifetime <= timedelta()):
        message = "A key needs at least one scope, and a life longer than nothing."
        raise InvalidRequest(message)
    if not project or not (project + name).isprintable() or max(len(project), len(name)) > MAX_NAME_CHARS:
        message = f"Names have at most {MAX_NAME_CHARS} printable characters, and a project's at least one."
        raise InvalidRequest(message)
    project_id = _project_id(connection, project)
    key_id, secret = secrets.token_hex(6), secrets.token_hex(SECRET_CHARS // 2)
    secret += _checksum(f"{PREFIX}_{key_id}_{secret}")
    values = {
        "id": key_id,
        "project_id": project_id,
        "name": name,
        "secret_hash": _hash(secret),
        "scopes": sorted(set(scopes)),
        "expires_at": None if lifetime is None else func.app_now() + lifetime,
    }
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
        AuthenticationFailed: there is no such key, it was revoked, or it has expired.
    """
    prefix, _, rest = key.partition("_")
    key_id, _, secret = rest.partition("_")
    if prefix != PREFIX or not key_id.isalnum() or not key_id.isascii() or not _is_whole(key, secret):
        raise AuthenticationFailed
    columns = (api_keys.c.project_id, api_keys.c.secret_hash, api_keys.c.scopes, projects.c.calls_per_minute)
    statement = select(*columns).join(projects)
    row = connection.execute(statement.where(api_keys.c.id == key_id, IN_USE)).one_or_none()
    # Compared even when there is no such key, so that the answer takes as long.
    if not hmac.compare_digest(_hash(secret), row.secret_hash if row else bytes(32)) or row is None:
        raise AuthenticationFailed
    return Caller(row.project_id, key_id, frozenset(row.scopes), row.calls_per_minute)


def _is_whole(key: str, secret: str) -> bool:
    """Tell whether the checksum fits, so that a key with a typing mistake costs no look-up. It is no secret."""
    checked = len(key) - len(secret) + SECRET_CHARS
    return len(secret) == SECRET_CHARS or _checksum(key[:checked]) == key[checked:]


def _checksum(text: str) -> str:
    return f"{zlib.crc32(text.encode('utf-8', 'replace')):08x}"


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
    is_expired = func.coalesce(api_keys.c.expires_at <= func.app_now(), False).label("is_expired")
    statement = select(api_keys, is_expired, projects.c.name.label("project")).join(projects)
    statement = statement.order_by(api_keys.c.created_at)
    return [_info(row) for row in connection.execute(statement)]


def _info(row: Row[Any]) -> KeyInfo:
    return KeyInfo(
        id=row.id,
        name=row.name,
        project=row.project,
        created_at=row.created_at.isoformat(timespec="seconds"),
        scopes=", ".join(row.scopes),
        expires_at=row.expires_at.isoformat(timespec="seconds") if row.expires_at else "never",
        state="revoked" if row.revoked_at else "expired" if row.is_expired else "in use",
    )


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
