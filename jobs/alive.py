"""A file whose age tells that a process goes on, for health checks that cannot ask it (`alive_file`)."""

import time
from contextlib import suppress
from pathlib import Path

# Longer than a sweep or a heartbeat that waits for Postgres as long as it may, by default.
STALE_SECONDS = 180


def note(path: Path | None) -> None:
    """Say that this process goes on, if there is where to say it. A full disk stops nobody."""
    if path:
        with suppress(OSError):
            path.touch()


def is_fresh(path: Path) -> bool:
    """Tell whether the process said so lately."""
    try:
        return time.time() - path.stat().st_mtime < STALE_SECONDS
    except OSError:
        return False
