"""Structured logs on stderr: ids, counts and codes; never a prompt, an output or a secret.

What a line is about stands in it by name: `request_id` of a call, `batch_id`, `shard_id`. They are bound to the context
that does the work (`about`), so that lines of libraries have them too.
"""

import logging
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import structlog

LogFormat = Literal["json", "console"]


def configure(level: str, process: str, log_format: LogFormat = "json") -> None:
    """Send the logs of this process, ours and the libraries', to stderr."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        # Not bound to the context: threads begin with an empty one.
        lambda _logger, _method, line: {"process": process, **line},
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        cache_logger_on_first_use=True,
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_renderers(log_format)],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.captureWarnings(capture=True)
    # A line for each request that the engine is asked; and with whom webhooks speak.
    for library in ("httpx2", "httpcore2"):
        logging.getLogger(library).setLevel(logging.WARNING)


def _renderers(log_format: LogFormat) -> list[structlog.typing.Processor]:
    if log_format == "json":
        return [structlog.processors.ExceptionRenderer(_trace), structlog.processors.JSONRenderer()]
    words = structlog.processors.ExceptionRenderer(lambda exc_info: "\n".join(_trace(exc_info)))
    return [words, structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]


@contextmanager
def about(**what: str) -> Iterator[None]:
    """Have every line of this context, until the end of the block, say what it is about: ids by name."""
    before = structlog.contextvars.get_contextvars()
    structlog.contextvars.bind_contextvars(**what)
    try:
        yield
    finally:
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(**before)


def add(**what: str) -> None:
    """Have the lines of this context say more, until the end of the innermost `about`."""
    structlog.contextvars.bind_contextvars(**what)


def _trace(exc_info: structlog.typing.ExcInfo) -> list[str]:
    """Return where an error came from, without its words and variables: drivers quote rows, frames hold prompts."""
    lines = []
    error: BaseException | None = exc_info[1]
    while error is not None:
        frames = traceback.extract_tb(error.__traceback__)
        lines += [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
        lines.append(type(error).__name__)
        error = error.__cause__
    return lines


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    logger: structlog.stdlib.BoundLogger = structlog.get_logger(name)
    return logger
