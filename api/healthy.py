"""`promptmill healthy`: how a container's health check asks a process beside it whether all is well."""

import asyncio
from enum import StrEnum

from api.stack.program import http_ok
from jobs import alive
from jobs.errors import ConfigurationError
from jobs.settings import Settings


class Process(StrEnum):
    """What can be asked."""

    api = "api"
    flower = "flower"
    reconciler = "reconciler"
    worker = "worker"


def is_healthy(settings: Settings, process: Process) -> bool:
    """Tell whether the process with these settings, on this machine, does its work.

    Raises:
        ConfigurationError: it is a worker or reconciler, and no `alive_file` is set.
    """
    match process:
        case Process.api:
            return _answers(settings.api.host, settings.api.port, "/readyz")
        case Process.flower:
            return _answers(settings.flower.host, settings.flower.port, "/healthcheck")
    if settings.alive_file is None:
        message = "PROMPTMILL_ALIVE_FILE is not set: nothing tells whether this process goes on."
        raise ConfigurationError(message)
    return alive.is_fresh(settings.alive_file)


def _answers(host: str, port: int, path: str) -> bool:
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  nothing listens here
    return asyncio.run(http_ok(reachable, port, path))
