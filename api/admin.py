"""What an operator does to the database from the command line."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

from sqlalchemy import Connection

from jobs import audit, db, fleet, keys, quotas, webhooks
from jobs.audit import Deed
from jobs.fleet import WorkerInfo
from jobs.keys import KeyInfo, Scope
from jobs.protocol import WebhookEndpoint, WebhookEndpointCreate, WebhookEndpointWithSecret
from jobs.settings import Settings

Answer = TypeVar("Answer")
# Far more than a project may have: all on one page.
ALL = 1_000_000


def _once(settings: Settings, work: Callable[[Connection], Answer]) -> Answer:
    engine = db.make_engine(settings.database_url.get_secret_value(), connections=1)
    try:
        with db.transaction(engine, point="administer") as connection:
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


def list_deeds(settings: Settings, project: str | None, limit: int) -> list[Deed]:
    def read(connection: Connection) -> list[Deed]:
        project_id = None if project is None else keys.find_project(connection, project)
        return audit.latest(connection, project_id=project_id, limit=limit)

    return _once(settings, read)


def limit_project(settings: Settings, project: str, limits: dict[str, int | None]) -> None:
    _once(settings, lambda connection: quotas.change(connection, project, limits))


def list_projects(settings: Settings) -> list[dict[str, Any]]:
    return _once(settings, quotas.list_all)


def create_webhook(settings: Settings, project: str, new: WebhookEndpointCreate) -> WebhookEndpointWithSecret:
    def create(connection: Connection) -> WebhookEndpointWithSecret:
        project_id = keys.find_project(connection, project)
        endpoint_id = webhooks.create(connection, project_id, new, settings.webhooks)
        return webhooks.find_with_secret(connection, project_id, endpoint_id, settings.webhooks)

    return _once(settings, create)


def list_webhooks(settings: Settings, project: str) -> list[WebhookEndpoint]:
    def list_all(connection: Connection) -> list[WebhookEndpoint]:
        project_id = keys.find_project(connection, project)
        return webhooks.list_page(connection, project_id, after=None, limit=ALL)[0]

    return _once(settings, list_all)


def rotate_webhook(settings: Settings, project: str, endpoint_id: str, *, keep_old: bool) -> WebhookEndpointWithSecret:
    def rotate(connection: Connection) -> WebhookEndpointWithSecret:
        project_id = keys.find_project(connection, project)
        webhooks.rotate(connection, project_id, endpoint_id, settings.webhooks, keep_old=keep_old)
        return webhooks.find_with_secret(connection, project_id, endpoint_id, settings.webhooks)

    return _once(settings, rotate)


def seal_webhooks(settings: Settings) -> int:
    return _once(settings, lambda connection: webhooks.seal_all(connection, settings.webhooks))


def delete_webhook(settings: Settings, project: str, endpoint_id: str) -> None:
    def delete(connection: Connection) -> None:
        webhooks.remove(connection, keys.find_project(connection, project), endpoint_id)

    _once(settings, delete)


def list_workers(settings: Settings) -> list[WorkerInfo]:
    seconds = settings.retention.model_memory_seconds
    return _once(settings, lambda connection: fleet.list_seen(connection, memory_seconds=seconds))


def require_version(settings: Settings, wanted: str | None) -> None:
    _once(settings, lambda connection: fleet.require_version(connection, wanted))
