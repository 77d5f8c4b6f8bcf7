"""What is received from a client is kept as a whole or not at all."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.concurrency import run_in_threadpool

from jobs.ingest import Ingest
from jobs.uploads import Part


@asynccontextmanager
async def whole_or_nothing(received: Ingest | Part) -> AsyncIterator[None]:
    """Remove what was received unless the block ends well. A client that hangs up is a bad end too."""
    try:
        yield
    except BaseException:
        await run_in_threadpool(received.discard)
        raise
