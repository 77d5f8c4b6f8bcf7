"""The webhook endpoints of a project, and what became of the messages to them."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Table, delete, func, insert, select, update

from jobs import addresses, events, idempotency, ids, pages, quotas, vault
from jobs.errors import InvalidRequest, NotFound
from jobs.protocol import (
    WebhookDelivery,
    WebhookEndpoint,
    WebhookEndpointCreate,
    WebhookEndpointUpdate,
    WebhookEndpointWithSecret,
    unix,
)
from jobs.settings import Webhooks
from jobs.tables import webhook_deliveries, webhook_endpoints

MAX_NAME_CHARS = 100
# How long the secret before still signs, seconds: the contract's "keep_old_secret_active_for_24_hours".
OVERLAP_SECONDS = 86_400


def create(connection: Connection, project_id: str, new: WebhookEndpointCreate, settings: Webhooks) -> str:
    """Make an endpoint and return its id. It is told of what ends from now on.

    Raises:
        InvalidRequest: URL or name are not valid, the project has as many endpoints as it may have, or this server has
            no key for their secrets.
    """
    _check(new.url, new.name, settings)
    quotas.alone(connection, project_id)
    count = select(func.count()).where(webhook_endpoints.c.project_id == project_id)
    if connection.execute(count).scalar_one() >= settings.max_endpoints:
        message = f"A project has at most {settings.max_endpoints} webhook endpoints."
        raise InvalidRequest(message, code="too_many_webhook_endpoints")
    endpoint_id = ids.new_webhook_endpoint_id()
    values = {
        "id": endpoint_id,
        "project_id": project_id,
        "name": new.name,
        "url": new.url,
        "event_types": sorted(set(new.event_types)),
        **_new_secret(settings),
    }
    connection.execute(insert(webhook_endpoints).values(values))
    return endpoint_id


def _new_secret(settings: Webhooks) -> dict[str, str]:
    secret = events.new_secret()
    return {"secret": vault.seal(secret, settings.key_file), "secret_hint": events.secret_hint(secret)}


def _check(url: str | None, name: str | None, settings: Webhooks) -> None:
    if url is not None:
        addresses.check_url(url, settings)
    if name is not None and not (name.isprintable() and len(name) <= MAX_NAME_CHARS):
        message = f"Invalid 'name': at most {MAX_NAME_CHARS} printable characters."
        raise InvalidRequest(message, param="name", code="invalid_value")


def find(connection: Connection, project_id: str, endpoint_id: str) -> WebhookEndpoint:
    """Return an endpoint.

    Raises:
        NotFound: no such endpoint in this project.
    """
    return _wire(_row(connection, project_id, endpoint_id))


def find_with_secret(
    connection: Connection, project_id: str, endpoint_id: str, settings: Webhooks
) -> WebhookEndpointWithSecret:
    """Return an endpoint and its secret, for the answers that show it.

    Raises:
        NotFound: no such endpoint in this project.
    """
    row = _row(connection, project_id, endpoint_id)
    secret = vault.unseal(row.secret, settings.key_file)
    return WebhookEndpointWithSecret(**_wire(row).model_dump(), signing_secret=secret)


def _row(connection: Connection, project_id: str, endpoint_id: str) -> Row[Any]:
    statement = select(webhook_endpoints).where(_is(project_id, endpoint_id))
    if (row := connection.execute(statement).one_or_none()) is None:
        raise _not_found(endpoint_id)
    return row


def _is(project_id: str, endpoint_id: str) -> ColumnElement[bool]:
    return (webhook_endpoints.c.project_id == project_id) & (webhook_endpoints.c.id == endpoint_id)


def _not_found(endpoint_id: str) -> NotFound:
    return NotFound(f"No webhook endpoint found with id '{endpoint_id}'.")


def list_page(
    connection: Connection, project_id: str, *, after: str | None, limit: int
) -> tuple[list[WebhookEndpoint], bool]:
    """Return up to `limit` endpoints, newest first, after the endpoint `after`, and whether more follow.

    Raises:
        NotFound: `after` names no endpoint of this project.
    """
    chosen = webhook_endpoints.c.project_id == project_id
    rows, has_more = _page(connection, webhook_endpoints, chosen, after, limit)
    return [_wire(row) for row in rows], has_more


def list_deliveries(
    connection: Connection, project_id: str, endpoint_id: str, *, after: str | None, limit: int
) -> tuple[list[WebhookDelivery], bool]:
    """Return up to `limit` messages to an endpoint, newest first, after the message `after`, and whether more follow.

    Raises:
        NotFound: no such endpoint in this project, or `after` names no message to it.
    """
    _row(connection, project_id, endpoint_id)
    chosen = webhook_deliveries.c.endpoint_id == endpoint_id
    rows, has_more = _page(connection, webhook_deliveries, chosen, after, limit)
    return [_delivery(row) for row in rows], has_more


def _page(
    connection: Connection, table: Table, chosen: ColumnElement[bool], after: str | None, limit: int
) -> tuple[Sequence[Row[Any]], bool]:
    mark = pages.place(connection, table, chosen, after, _no_place) if after else None
    return pages.read(connection, select(table).where(chosen), table, after=mark, limit=limit, newest_first=True)


def _no_place(object_id: str) -> NotFound:
    return NotFound(f"Nothing found with id '{object_id}'.", param="after")


def change(
    connection: Connection, project_id: str, endpoint_id: str, asked: WebhookEndpointUpdate, settings: Webhooks
) -> None:
    """Change what is named. A URL that is set, even to what it was, makes a disabled endpoint work again.

    Raises:
        InvalidRequest: URL or name are not valid.
        NotFound: no such endpoint in this project.
    """
    _check(asked.url, asked.name, settings)
    values = asked.model_dump(exclude_none=True)
    if asked.event_types:
        values["event_types"] = sorted(set(asked.event_types))
    if asked.url:
        values["disabled_at"] = None
    _update(connection, project_id, endpoint_id, values)


def rotate(connection: Connection, project_id: str, endpoint_id: str, settings: Webhooks, *, keep_old: bool) -> None:
    """Give the endpoint a new secret. With `keep_old` the old one signs too, for a day.

    Raises:
        NotFound: no such endpoint in this project.
        InvalidRequest: this server has no key for secrets.
    """
    overlap = func.app_now() + func.make_interval(0, 0, 0, 0, 0, 0, OVERLAP_SECONDS)
    values = {
        **_new_secret(settings),
        "previous_secret": webhook_endpoints.c.secret if keep_old else None,
        "previous_secret_until": overlap if keep_old else None,
    }
    _update(connection, project_id, endpoint_id, values)


def seal_all(connection: Connection, settings: Webhooks) -> int:
    """Seal every secret with the newest key, and return how many endpoints there are. What is shown of each is right.

    Secrets before that do not sign any more are dropped, readable or not.

    Raises:
        InvalidRequest: there is no key.
        ConfigurationError: a secret was sealed with a key that is not there any more; nothing is changed.
    """
    signs = webhook_endpoints.c.previous_secret_until > func.app_now()
    statement = select(webhook_endpoints, signs.label("previous_signs")).order_by(webhook_endpoints.c.id)
    rows = connection.execute(statement.with_for_update()).all()
    for row in rows:
        change = update(webhook_endpoints).where(webhook_endpoints.c.id == row.id)
        connection.execute(change.values(**_sealed_anew(row, settings)))
    return len(rows)


def _sealed_anew(row: Row[Any], settings: Webhooks) -> dict[str, Any]:
    """Return the changed columns. Not `updated_at`: by it the audit log tells this from a rotation (migration 0018)."""
    secret = vault.unseal(row.secret, settings.key_file)
    changed = {"secret": vault.seal(secret, settings.key_file), "secret_hint": events.secret_hint(secret)}
    if not row.previous_signs:
        return {**changed, "previous_secret": None, "previous_secret_until": None}
    previous = vault.unseal(row.previous_secret, settings.key_file)
    return {**changed, "previous_secret": vault.seal(previous, settings.key_file)}


def _update(connection: Connection, project_id: str, endpoint_id: str, values: dict[str, Any]) -> None:
    statement = update(webhook_endpoints).where(_is(project_id, endpoint_id))
    if not connection.execute(statement.values(**values, updated_at=func.app_now())).rowcount:
        raise _not_found(endpoint_id)


def remove(connection: Connection, project_id: str, endpoint_id: str) -> None:
    """Delete an endpoint with its secret and the messages to it: nothing is sent any more.

    Raises:
        NotFound: no such endpoint in this project.
    """
    idempotency.forget_object(connection, endpoint_id)
    if not connection.execute(delete(webhook_endpoints).where(_is(project_id, endpoint_id))).rowcount:
        raise _not_found(endpoint_id)


def _wire(row: Row[Any]) -> WebhookEndpoint:
    return WebhookEndpoint(
        id=row.id,
        name=row.name,
        url=row.url,
        event_types=row.event_types,
        created_at=unix(row.created_at),
        updated_at=unix(row.updated_at),
        disabled_at=unix(row.disabled_at),
        signing_secret_hint=row.secret_hint or events.secret_hint(row.secret),
    )


def _delivery(row: Row[Any]) -> WebhookDelivery:
    return WebhookDelivery(
        id=row.id,
        type=row.type,
        batch_id=row.batch_id,
        status="waiting" if row.next_at else "delivered" if row.delivered_at else "given_up",
        attempts=row.attempts,
        last_status_code=row.last_status,
        last_error=row.last_error,
        created_at=unix(row.created_at),
        last_attempt_at=unix(row.attempted_at),
        next_attempt_at=unix(row.next_at),
        delivered_at=unix(row.delivered_at),
        given_up_at=unix(row.given_up_at),
    )
