"""`/v1/webhook_endpoints`: who is told when batches end. The names are those of `client.webhooks` of the openai SDK."""

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query
from sqlalchemy import Connection

from api.context import CreatesWebhook, Here, WebhooksReader, WebhooksWriter
from jobs import idempotency, webhooks
from jobs.events import EventType
from jobs.protocol import (
    Page,
    WebhookDelivery,
    WebhookEndpoint,
    WebhookEndpointCreate,
    WebhookEndpointDeleted,
    WebhookEndpointUpdate,
    WebhookEndpointWithSecret,
    WebhookEventTypeList,
    WebhookSecretRotate,
)

router = APIRouter(prefix="/v1", tags=["webhooks"])

Limit = Annotated[int, Query(ge=1, le=100)]


@router.get("/webhook_event_types")
async def list_event_types(_: WebhooksReader) -> WebhookEventTypeList:
    """List what an endpoint can be told."""
    return WebhookEventTypeList(data=list(EventType))


@router.post("/webhook_endpoints")
async def create_endpoint(
    asked: WebhookEndpointCreate, call: CreatesWebhook, context: Here
) -> WebhookEndpointWithSecret:
    """Register a receiver. Its secret is in this answer only; a call that is repeated has the same answer."""
    project_id = call.caller.project_id

    def create(connection: Connection) -> WebhookEndpointWithSecret:
        make = partial(webhooks.create, connection, project_id, asked, context.settings.webhooks)
        endpoint_id, _ = idempotency.once(connection, call, idempotency.fingerprint(asked), make)
        return webhooks.find_with_secret(connection, project_id, endpoint_id, context.settings.webhooks)

    return await context.transaction(call.caller, create, point="create_webhook")


@router.get("/webhook_endpoints")
async def list_endpoints(
    caller: WebhooksReader, context: Here, after: str | None = None, limit: Limit = 20
) -> Page[WebhookEndpoint]:
    """List the project's endpoints, newest first."""
    data, has_more = await context.reading(
        caller, lambda connection: webhooks.list_page(connection, caller.project_id, after=after, limit=limit)
    )
    return Page.of(data, has_more=has_more)


@router.get("/webhook_endpoints/{endpoint_id}")
async def retrieve_endpoint(endpoint_id: str, caller: WebhooksReader, context: Here) -> WebhookEndpoint:
    """Describe an endpoint, without its secret."""
    return await context.reading(caller, lambda connection: webhooks.find(connection, caller.project_id, endpoint_id))


@router.post("/webhook_endpoints/{endpoint_id}")
async def update_endpoint(
    endpoint_id: str, asked: WebhookEndpointUpdate, caller: WebhooksWriter, context: Here
) -> WebhookEndpoint:
    """Change an endpoint. Messages that wait go to the new URL."""

    def change(connection: Connection) -> WebhookEndpoint:
        webhooks.change(connection, caller.project_id, endpoint_id, asked, context.settings.webhooks)
        return webhooks.find(connection, caller.project_id, endpoint_id)

    return await context.transaction(caller, change, point="change_webhook")


@router.delete("/webhook_endpoints/{endpoint_id}")
async def delete_endpoint(endpoint_id: str, caller: WebhooksWriter, context: Here) -> WebhookEndpointDeleted:
    """Delete an endpoint. Messages that wait are not sent any more."""
    await context.transaction(
        caller, lambda connection: webhooks.remove(connection, caller.project_id, endpoint_id), point="delete_webhook"
    )
    return WebhookEndpointDeleted(id=endpoint_id)


@router.post("/webhook_endpoints/{endpoint_id}/rotate_secret")
async def rotate_secret(
    endpoint_id: str, asked: WebhookSecretRotate, call: CreatesWebhook, context: Here
) -> WebhookEndpointWithSecret:
    """Give an endpoint a new secret, which is in this answer only; a call that is repeated has the same answer."""
    project_id = call.caller.project_id
    keep_old = asked.keep_old_secret_active_for_24_hours

    def rotate(connection: Connection) -> WebhookEndpointWithSecret:
        def make() -> str:
            webhooks.rotate(connection, project_id, endpoint_id, context.settings.webhooks, keep_old=keep_old)
            return endpoint_id

        idempotency.once(connection, call, idempotency.fingerprint(asked), make)
        return webhooks.find_with_secret(connection, project_id, endpoint_id, context.settings.webhooks)

    return await context.transaction(call.caller, rotate, point="rotate_webhook")


@router.get("/webhook_endpoints/{endpoint_id}/deliveries")
async def list_deliveries(
    endpoint_id: str, caller: WebhooksReader, context: Here, after: str | None = None, limit: Limit = 20
) -> Page[WebhookDelivery]:
    """List the messages to an endpoint, newest first: what arrived, and why the rest did not."""
    data, has_more = await context.reading(
        caller,
        lambda connection: webhooks.list_deliveries(
            connection, caller.project_id, endpoint_id, after=after, limit=limit
        ),
    )
    return Page.of(data, has_more=has_more)
