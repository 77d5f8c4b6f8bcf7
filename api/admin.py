"""What an operator does to the database from the command line."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

from sqlalchemy import Connection

from jobs import db, keys, quotas
from jobs.keys import KeyInfo, Scope
from jobs.settings import Settings

Answer = TypeVar("Answer")


def _once(settings: Settings, work: Callable[[Connection], Answer]) -> Answer:
    engine = db.make_engine(settings.database_url.get_secret_value(), connections=1)
    try:
        with db.transaction(engine) as connection:
            return work(connection)
    finally:
        engine.dispose()


def create_key(
    settings: Settings, *, project: str, name: str, scopes: Sequence[Scope], lifetime: timedelta | None
) -> str:
    return _once(
        settings,
        lambda connection: keys.create(connection, project=project, name=name, scopes=scopes, lifetime=lifetime),
    )


def list_keys(settings: Settings) -> list[KeyInfo]:
    return _once(settings, keys.list_all)


def revoke_key(settings: Settings, key_id: str) -> None:
    _once(settings, lambda connection: keys.revoke(connection, key_id))


def limit_project(settings: Settings, project: str, limits: dict[str, int | None]) -> None:
    _once(settings, lambda connection: quotas.change(connection, project, limits))


def list_projects(settings: Settings) -> list[dict[str, Any]]:
    return _once(settings, quotas.list_all)
