"""Who may do what in Redis: a user for each kind of process, with the commands that Celery and kombu send there.

docs/operations.md shows the same rules for a Redis of one's own. No process may read or change its configuration, empty
it, list its keys, debug it, or make it follow another server.
"""

import hashlib
import hmac
from collections.abc import Mapping
from typing import Literal, get_args

Role = Literal["producer", "worker", "viewer"]
ROLES: tuple[Role, ...] = get_args(Role)

_OURS = "~promptmill:* &promptmill:*"
_TALK = "-@all +auth +hello +ping +select +client|setinfo +multi +exec +discard"
# `info` says what happens to hints when memory is full; events for Flower go by `publish`.
_SEND = f"{_TALK} +info +lpush +llen +sadd +smembers +publish"
# What kombu does with queues that expire is Lua, whose commands must be allowed too.
_SCRIPTS = "+evalsha +script|load +script|exists"
RULES: Mapping[Role, str] = {
    # The API and the reconciler.
    "producer": f"{_OURS} {_SEND}",
    # Its Lua gives back the lock around taking up old hints.
    "worker": f"{_OURS} {_SEND} +brpop +rpush +zadd +zrem +zrange +hset +hget +hdel +set +get +del +watch +unwatch "
    f"{_SCRIPTS}",
    # Flower: hears events, and sees how long queues are. It may write down that it listens, and ask the workers, who do
    # not answer. A pattern of channels must stand here just as it is subscribed to, with the number of the database.
    "viewer": f"%R~promptmill:* ~promptmill:_kombu.* ~promptmill:celeryev.* ~promptmill:*.reply.celery.pidbox* "
    f"&promptmill:* &promptmill:/0.celeryev/* {_TALK} +llen +smembers +sadd +srem +publish +psubscribe +punsubscribe "
    f"+brpop {_SCRIPTS} +time +zadd +zrangebyscore +zrem +exists +del",
}


def name(role: Role) -> str:
    return f"promptmill-{role}"


def password(secret: str, role: Role) -> str:
    """Return the password of a role: made from the stack's secret, which nobody can work out from it."""
    return hmac.new(secret.encode(), role.encode(), hashlib.sha256).hexdigest()


def line(role: Role, secret: str) -> str:
    """Return the line of a configuration file that makes the user; the hash of its password is in it."""
    return f"user {name(role)} on #{hashed(password(secret, role))} {RULES[role]}"


def lines(secret: str) -> str:
    """Return the lines of all users: of the administrator, whose password the secret is, and of each role."""
    return "\n".join([f"user default on #{hashed(secret)} ~* &* +@all", *(line(role, secret) for role in ROLES)])


def hashed(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
