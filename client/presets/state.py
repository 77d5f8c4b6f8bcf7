"""What a run remembers beside its output, so that it goes on after anything."""

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import msgspec

from client.downloads import replacing
from jobs.errors import ConfigurationError, InvalidRequest

WINDOW = "24h"


class PartState(msgspec.Struct):
    """One part of the input, by its content."""

    sha256: str
    batch: str | None = None
    """None until the server has answered."""
    attempt: int = 0
    """Raised when the batch failed as a whole, for another one to be made."""
    retries: list[str | None] = msgspec.field(default_factory=list)
    """Batches of what failed in the one before; None until the server has answered."""

    def made(self) -> list[str]:
        """Return the batches of this part, oldest first."""
        return [batch for batch in (self.batch, *self.retries) if batch is not None]


class State(msgspec.Struct):
    """One run."""

    run: str
    """Goes into the names of its calls: repeated, they make nothing new, and another run's are others."""
    model: str
    parts: list[PartState] = msgspec.field(default_factory=list)
    window: str = WINDOW
    """The completion window of its batches."""
    finished: bool = False
    """Whether the table is written. The run is remembered since requests failed that can be run again."""
    failed_rows: int = 0
    """Of a run that is finished."""


def folder(out: Path) -> Path:
    """Return where the run for an output keeps its things."""
    return out.with_name(f"{out.name}.promptmill")


def load(out: Path) -> State | None:
    """Return the state of the run that was interrupted, or that is finished and had failures; None if there is none.

    Raises:
        ConfigurationError: the file is not what a run wrote.
    """
    try:
        return msgspec.json.decode(_file(out).read_bytes(), type=State)
    except FileNotFoundError:
        return None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        message = f"{_file(out)} cannot be read: {error}. Begin anew with --restart."
        raise ConfigurationError(message) from error


def new(model: str, window: str = WINDOW) -> State:
    """Return the state of a run that has done nothing yet."""
    return State(run=secrets.token_hex(8), model=model, window=window)


def save(out: Path, state: State) -> None:
    """Write the state; a kill leaves the old or the new one. On disk before the call that it is about."""
    folder(out).mkdir(exist_ok=True)
    with replacing(_file(out)) as fresh:
        fresh.write_bytes(msgspec.json.format(msgspec.json.encode(state)))


def made_by(out: Path) -> dict[str, str]:
    """Return what the batches for an output say about themselves."""
    return {"made_by": "promptmill", "out": out.name[:512]}


def keep(out: Path, state: State, failed_rows: int) -> None:
    """Remember that a run is finished, and nothing else of it."""
    state.finished, state.failed_rows = True, failed_rows
    save(out, state)
    _remove(out, _file(out))


def forget(out: Path) -> None:
    """Remove what a run remembers; its lock stays. The state goes last: what lies there without one is nobody's."""
    _remove(out, _file(out))
    _file(out).unlink(missing_ok=True)


def _remove(out: Path, but: Path) -> None:
    for path in folder(out).iterdir():
        if path not in (but, _lock(out)):
            path.unlink()


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Keep other runs for an output away. Afterwards the folder is gone, unless a run is remembered there.

    Raises:
        InvalidRequest: another run is under way.
    """
    folder(out).mkdir(exist_ok=True)
    with _lock(out).open("w") as file:
        if not _taken(file, _lock(out)):
            message = f"Another run for {out} is under way. It must end first, or be stopped."
            raise InvalidRequest(message)
        try:
            yield
        finally:
            if not _file(out).exists():
                shutil.rmtree(folder(out))


def _taken(file: TextIO, path: Path) -> bool:
    """Whether the lock is ours. One that its run removed at its end, after we opened it, keeps nobody away."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except (BlockingIOError, FileNotFoundError):
        return False


def _lock(out: Path) -> Path:
    return folder(out) / "lock"


def _file(out: Path) -> Path:
    return folder(out) / "state.json"
