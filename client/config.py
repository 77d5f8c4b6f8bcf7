"""Which server a command talks to: flags and environment, a file of the user's, or the stack that runs here."""

import tomllib
from dataclasses import dataclass
from pathlib import Path

import msgspec
import typer

from jobs import local, settings
from jobs.errors import ConfigurationError

# Keys of ours begin with it: in `OPENAI_API_KEY` there may be one for somebody else's server.
OUR_KEYS = "pm_"


class File(msgspec.Struct, forbid_unknown_fields=True):
    """`config.toml`."""

    base_url: str | None = None
    api_key: str | None = None
    model: str | None = None


@dataclass(frozen=True)
class Server:
    """Where calls go."""

    base_url: str
    api_key: str
    model: str | None
    """The model that the user's file names, for commands that need one."""
    named_by: str
    """In words: who said so."""


def path() -> Path:
    """Return the user's file: `$XDG_CONFIG_HOME/promptmill/config.toml`, below `~/.config` if that is not set."""
    return Path(typer.get_app_dir("promptmill")) / "config.toml"


def load_file() -> File:
    """Return what the user's file says; nothing if there is none.

    Raises:
        ConfigurationError: it is not valid.
    """
    try:
        return msgspec.convert(tomllib.loads(path().read_text()), File)
    except FileNotFoundError:
        return File()
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        message = f"{path()} is not valid: {error}"
        raise ConfigurationError(message) from error


def find(base_url: str | None, api_key: str | None) -> Server:
    """Return the server that the first of these names: flags and environment, the user's file, a running stack.

    Where the file or the stack names the address, its own key goes with it: a key is not sent to a server that it was
    not meant for.

    Raises:
        ConfigurationError: nothing names an address or a key.
    """
    file = load_file()
    if base_url:
        key = api_key or (file.api_key if file.base_url == base_url else None)
        return _server(base_url, key, file, "--base-url or OPENAI_BASE_URL")
    if file.base_url:
        return _server(file.base_url, _ours(api_key) or file.api_key, file, str(path()))
    data_dir = settings.load().data_dir.resolve()
    if stack := local.running_stack(data_dir):
        return _server(stack.base_url, _ours(api_key) or stack.api_key, file, f"the stack on {data_dir}")
    message = f"Which server? Set --base-url, OPENAI_BASE_URL or {path()}; none runs on {data_dir} (`promptmill up`)."
    raise ConfigurationError(message)


def _ours(api_key: str | None) -> str | None:
    return api_key if api_key and api_key.startswith(OUR_KEYS) else None


def _server(base_url: str, api_key: str | None, file: File, named_by: str) -> Server:
    if not api_key:
        message = f"Which key? {named_by} names the server; set --api-key or OPENAI_API_KEY."
        raise ConfigurationError(message)
    return Server(base_url, api_key, file.model, named_by)
