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


class PartState(msgspec.Struct):
    """One part of the input, by its content."""

    sha256: str
    batch: str | None = None
    """None until the server has answered."""
    attempt: int = 0
    """Raised when the batch failed as a whole, for another one to be made."""


class State(msgspec.Struct):
    """One run."""

    run: str
    """Goes into the names of its calls: repeated, they make nothing new, and another run's are others."""
    model: str
    parts: list[PartState] = msgspec.field(default_factory=list)


def folder(out: Path) -> Path:
    """Return where the run for an output keeps its things."""
    return out.with_name(f"{out.name}.promptmill")


def load(out: Path) -> State | None:
    """Return the state of the run that was interrupted; None if there is none.

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


def new(model: str) -> State:
    """Return the state of a run that has done nothing yet."""
    return State(run=secrets.token_hex(8), model=model)


def save(out: Path, state: State) -> None:
    """Write the state; a kill leaves the old or the new one. On disk before the call that it is about."""
    folder(out).mkdir(exist_ok=True)
    with replacing(_file(out)) as fresh:
        fresh.write_bytes(msgspec.json.format(msgspec.json.encode(state)))


def forget(out: Path) -> None:
    """Remove what a run remembers; its lock stays. The state goes last: what lies there without one is nobody's."""
    for path in sorted(folder(out).iterdir(), key=lambda path: path == _file(out)):
        if path != _lock(out):
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
