"""What a worker takes for a hint.

Whoever can write to Redis may put anything there. It is looked at before Celery does: Celery logs what it cannot read,
and there are messages that end its consumer, which puts them back for the next one.
"""

import base64
import itertools
from collections.abc import Callable
from queue import Empty
from typing import Annotated, Any, Literal

import msgspec

from jobs import dispatch, telemetry

log = telemetry.get_logger(__name__)

ShardId = Annotated[str, msgspec.Meta(pattern=r"^shard_[a-z0-9]{1,64}$")]


class _Headers(msgspec.Struct):
    """Those of Celery's protocol that decide anything; new ones are of no account."""

    task: str
    id: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f-]{36}$")]
    argsrepr: str = ""
    kwargsrepr: str = ""
    retries: Literal[0] = 0
    timelimit: tuple[None, None] = (None, None)
    eta: None = None
    expires: None = None
    shadow: None = None
    compression: None = None


class _Route(msgspec.Struct):
    exchange: str
    routing_key: str


class _Properties(msgspec.Struct):
    delivery_tag: str
    delivery_info: _Route
    body_encoding: Literal["base64"]


class _Envelope(msgspec.Struct, rename={"content_type": "content-type", "content_encoding": "content-encoding"}):
    body: str
    content_type: Literal["application/json"]
    content_encoding: Literal["utf-8"]
    headers: _Headers
    properties: _Properties


class _NoKeywords(msgspec.Struct, forbid_unknown_fields=True):
    pass


class _NoFollowers(msgspec.Struct, forbid_unknown_fields=True):
    callbacks: None = None
    errbacks: None = None
    chain: None = None
    chord: None = None


_Body = tuple[tuple[ShardId], _NoKeywords, _NoFollowers]


class Refusals:
    """Counts what was no hint. The log says how long it was and how many there were, never what was in it."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)

    def add(self, reason: str) -> None:
        log.warning("hint_refused", reason=reason, refused=next(self._numbers))

    def guard(self, channel: Any) -> None:  # noqa: ANN401  kombu has no types
        """Let nothing but hints through from this channel of Redis to Celery's consumer."""
        transport = channel.connection
        transport._deliver = self._only_hints(channel, transport._deliver)  # noqa: SLF001  kombu has no hook for it
        channel._brpop_read = self._only_json(channel, channel._brpop_read)  # noqa: SLF001
        channel.handlers["BRPOP"] = channel._brpop_read  # noqa: SLF001

    def _only_hints(self, channel: Any, deliver: Callable[[Any, str], None]) -> Callable[[Any, str], None]:  # noqa: ANN401
        def checked(message: object, queue: str) -> None:
            if reason := why_not(message):
                self.add(reason)
                return
            try:
                deliver(message, queue)
            except (Empty, channel.ResponseError, *channel.connection_errors):
                raise
            except Exception as error:  # noqa: BLE001  a hint is not worth a worker; this one is sent again
                log.error("hint_failed", error=type(error).__name__)

        return checked

    def _only_json(self, channel: Any, read: Callable[..., bool]) -> Callable[..., bool]:  # noqa: ANN401
        def checked(**options: Any) -> bool:  # noqa: ANN401
            try:
                return read(**options)
            except (Empty, channel.ResponseError, *channel.connection_errors):
                raise
            except Exception:  # noqa: BLE001  kombu makes objects of marks in the JSON, which may raise anything
                self.add("not_json")
                return True

        return checked


def why_not(message: object) -> str | None:
    """Return why a message of kombu's is no hint: `envelope` or `body`; None if it is one."""
    try:
        envelope = msgspec.convert(message, _Envelope)
    except msgspec.ValidationError:
        return "envelope"
    if envelope.headers.task != dispatch.RUN_SHARD:
        return "task"
    try:
        msgspec.json.decode(base64.b64decode(envelope.body, validate=True), type=_Body)
    except (ValueError, RecursionError):
        return "body"
    return None
