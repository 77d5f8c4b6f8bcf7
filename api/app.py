"""The HTTP service."""

import asyncio
import contextlib
import ctypes
from collections.abc import AsyncIterator
from importlib.metadata import version

import uvicorn
from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool

from api import errors, openapi
from api.anthropic_errors import AnthropicErrors
from api.context import Context
from api.middleware import BodyBounds, RequestIds
from api.routes import batches, files, health, messages, models, uploads, webhooks
from api.web import routes as web
from jobs import db, metrics_port, telemetry, tracing
from jobs.dispatch import Dispatcher
from jobs.settings import Settings

# malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
# Longer than a page of lines, which is used again at once; shorter than a line of the greatest length.
LARGE_BLOCK_BYTES = 8_000_000


def create_app(settings: Settings) -> FastAPI:
    """Return the service. Nothing is connected yet."""
    # The interactive documentation loads scripts from elsewhere; the document itself is at /openapi.json.
    # No redirects either: they would repeat the host that the client claims.
    app = FastAPI(
        title="Promptmill",
        version=version("promptmill"),
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=_close_at_the_end,
    )
    database = db.make_engine(
        settings.database_url.get_secret_value(),
        connections=settings.api.database_connections,
        statement_seconds=settings.statement_seconds,
    )
    turns = asyncio.Semaphore(settings.api.database_connections)
    app.state.context = Context(settings, database, Dispatcher(database, settings), turns)
    for module in (files, uploads, batches, messages, models, webhooks, health):
        app.include_router(module.router)
    web.install(app, settings)
    errors.install(app)
    openapi.install(app)
    app.add_middleware(BodyBounds, settings=settings.api)
    app.add_middleware(RequestIds)
    app.add_middleware(AnthropicErrors)
    return app


@contextlib.asynccontextmanager
async def _close_at_the_end(app: FastAPI) -> AsyncIterator[None]:
    yield
    context: Context = app.state.context
    await run_in_threadpool(context.dispatcher.close)
    context.database.dispose()


def _keep_little_memory() -> None:
    """Have glibc give large blocks back as soon as they are free, and keep one store for all threads.

    By default it learns to keep large blocks: with lines of 20 MB an upload and its download took 131 MB in place of
    88. A store for each thread keeps what that thread once had: with lines of 4 KB 54 MB in place of 42 (in blocks of
    4 MB), and is no faster on two cores (docs/benchmarks.md, D4, has today's figures).
    """
    with contextlib.suppress(AttributeError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES)
        # Said too, or every page of lines would be given back and asked for again: about a tenth of a download's time.
        libc.mallopt(M_TRIM_THRESHOLD, 2 * LARGE_BLOCK_BYTES)
        libc.mallopt(M_ARENA_MAX, 1)


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT."""
    _keep_little_memory()
    telemetry.configure(settings.log_level, "api", settings.log_format)
    tracing.configure(settings.tracing, "api")
    metrics_port.serve("api", settings.metrics, settings.metrics.api_port)
    uvicorn.run(
        create_app(settings),
        host=settings.api.host,
        port=settings.api.port,
        # It bounds the head of a call, and httptools, which uvicorn would take where it is installed, does not.
        http="h11",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(settings.api.drain_seconds),
    )
