"""A program of the stack: how to start it, how to know that it is ready, how to stop it."""

import asyncio
import importlib.util
import os
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.errors import ConfigurationError

LAUNCH = Path(__file__).with_name("launch.py")
Ready = Callable[[], Coroutine[Any, Any, bool]]


@dataclass(frozen=True)
class Program:
    """One child of the supervisor."""

    name: str
    argv: list[str]
    ready: Ready | None = None
    """Asked again and again until it is true."""
    ready_event: str = ""
    """It is ready when it has logged this."""
    runs_to_its_end: bool = False
    """It is ready when it has ended with status 0."""
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    stop_signal: signal.Signals = signal.SIGTERM
    orphan_signal: signal.Signals = signal.SIGKILL
    """What the kernel sends it when the supervisor was killed."""
    grace_seconds: float = 10
    start_seconds: float = 60
    uid: int = -1
    """User to run as; -1 for the supervisor's own."""

    def command(self, supervisor_pid: int) -> list[str]:
        """Return the command line that starts it so that it cannot outlive the supervisor."""
        numbers = [str(int(self.orphan_signal)), str(supervisor_pid), str(self.uid)]
        return [sys.executable, "-I", "-S", str(LAUNCH), *numbers, *self.argv]


def promptmill(*arguments: str) -> list[str]:
    """Return the command line of one of our own commands, in this very environment."""
    return [sys.executable, "-m", "api", *arguments]


def wheel_folder(package: str, setting: str) -> Path:
    """Return where a package is installed, without importing it.

    Raises:
        ConfigurationError: it is not installed; the message names the setting that makes it unnecessary.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        message = f"The wheel '{package.replace('_', '-')}' is not installed. Install it, or set {setting}."
        raise ConfigurationError(message)
    return Path(spec.submodule_search_locations[0])


def free_port() -> int:
    """Return a port of loopback that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def require_free(host: str, port: int, setting: str) -> None:
    """Make sure that a port can be listened on.

    Raises:
        ConfigurationError: it is taken; the message names the setting to change.
    """
    if not is_free(host, port):
        message = f"Port {port} on {host} is taken. Stop what listens there, or choose another with {setting}."
        raise ConfigurationError(message)


async def answers(host: str, port: int) -> bool:
    """Tell whether somebody accepts connections there."""
    try:
        _, writer = await asyncio.open_connection(host, port)
    except OSError:
        return False
    writer.close()
    return True


async def http_ok(host: str, port: int, path: str) -> bool:
    """Tell whether GET answers 200."""
    try:
        async with asyncio.timeout(5):
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(f"GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
            status = await reader.readline()
            writer.close()
    except (OSError, TimeoutError):
        return False
    return b" 200 " in status
