"""What a run remembers beside its output, so that it goes on after anything."""

import secrets
from pathlib import Path

import msgspec

from client.downloads import replacing
from jobs.errors import ConfigurationError


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
    except msgspec.MsgspecError as error:
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


def _file(out: Path) -> Path:
    return folder(out) / "state.json"
