"""What a webhook says, and how it is signed. Pure.

The body is the SDK's `BatchCompletedWebhookEvent` and its like; headers and signature are Standard Webhooks
(github.com/standard-webhooks, `spec/standard-webhooks.md`), which `client.webhooks.unwrap` of the openai SDK checks.
"""

import base64
import hashlib
import hmac
import json
import secrets
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from jobs.states import BatchStatus

SECRET_PREFIX = "whsec_"  # noqa: S105  says what a secret is
SECRET_BYTES = 32


class EventType(StrEnum):
    """What an endpoint can be told; the value is the wire name."""

    COMPLETED = "batch.completed"
    FAILED = "batch.failed"
    EXPIRED = "batch.expired"
    CANCELLED = "batch.cancelled"


def event_type(status: BatchStatus) -> EventType:
    """Return the event of a terminal status."""
    return EventType(f"batch.{status}")


def new_secret() -> str:
    """Return a secret of an endpoint: `whsec_` and 32 random bytes in base64, as the SDK decodes it."""
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def secret_hint(secret: str) -> str:
    """Return what tells two secrets apart and gives neither away."""
    return f"{SECRET_PREFIX}...{secret[-5:]}"


@dataclass(frozen=True)
class Event:
    """A batch came to its end."""

    id: str
    type: str
    batch_id: str
    created_at: datetime

    def body(self) -> bytes:
        """Return the JSON that is sent: the same bytes at every attempt."""
        event = {
            "id": self.id,
            "object": "event",
            "created_at": int(self.created_at.timestamp()),
            "type": self.type,
            "data": {"id": self.batch_id},
        }
        return json.dumps(event, separators=(",", ":")).encode()


def headers(event: Event, signing: list[str], sent_at: datetime) -> dict[str, str]:
    """Return the headers of Standard Webhooks: an id that stays, the time of this attempt, a signature a secret."""
    timestamp = str(int(sent_at.timestamp()))
    signed = b".".join((event.id.encode(), timestamp.encode(), event.body()))
    return {
        "webhook-id": event.id,
        "webhook-timestamp": timestamp,
        "webhook-signature": " ".join(_signature(secret, signed) for secret in signing),
    }


def _signature(secret: str, signed: bytes) -> str:
    key = base64.b64decode(secret.removeprefix(SECRET_PREFIX))
    return f"v1,{base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()}"
