"""The commands that live beside the engine; `promptmill` finds them as entry points."""

import os
import sys

from jobs import settings, telemetry
from jobs.errors import ConfigurationError


def worker() -> int:
    """Run a worker: one engine, fed from the queue. SIGTERM drains it."""
    from workers import service

    configuration = settings.load()
    telemetry.configure(configuration.log_level, "worker")
    return service.run(configuration)


def reconciler() -> int:
    """Run the reconciler: takes back the work of dead workers, ends batches, calls webhooks. Any number may run."""
    from workers.courier import Courier
    from workers.reconciler import Reconciler

    configuration = settings.load()
    telemetry.configure(configuration.log_level, "reconciler")
    with Courier(configuration):
        Reconciler(configuration).run()
    return 0


def flower() -> int:
    """Run Flower, the queue's web page: read-only, on loopback, with a password."""
    configuration = settings.load().flower
    if configuration.password is None:
        message = "PROMPTMILL_FLOWER__PASSWORD is not set: without a password Flower's page is open to everybody."
        raise ConfigurationError(message)
    # In the environment, not in the arguments: those can be read by every user of the machine.
    os.environ["FLOWER_BASIC_AUTH"] = f"{configuration.user}:{configuration.password.get_secret_value()}"
    options = ["--address=127.0.0.1", f"--port={configuration.port}", "--read_only=true", "--logging=error"]
    command = [sys.executable, "-m", "celery", "-A", "workers.celery_app", "flower", *options]
    os.execv(sys.executable, command)  # noqa: S606  our own interpreter
