"""The log of a process, in a test that is none."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from jobs import telemetry


@contextmanager
def configured() -> Iterator[None]:
    """Send logs to stderr as a process does, and then no more."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    telemetry.configure("info", "test")
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        logging.captureWarnings(capture=False)
        structlog.reset_defaults()
        structlog.contextvars.clear_contextvars()
