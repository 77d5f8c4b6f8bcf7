"""Secrets that must be read again, as they are stored: sealed with a key that is not in the database.

The keys are in a file, one a line, `#` begins a comment. The last one seals, all of them open: a new key is a line at
the end, and the old ones may go when `promptmill webhooks seal` has been run. The file is read each time, so that no
process need be restarted for a new key. Format: Fernet (AES-128-CBC with HMAC-SHA256), of the library `cryptography`.
"""

from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from jobs import events
from jobs.errors import ConfigurationError, InvalidRequest

_SETTING = "webhooks.key_file"


def new_key() -> str:
    """Return a key that nobody has: a line of the file."""
    return Fernet.generate_key().decode()


def seal(secret: str, key_file: Path | None) -> str:
    """Return a webhook's secret as it may be stored.

    Raises:
        InvalidRequest: the operator has set no key.
        ConfigurationError: the file cannot be read, or holds no key.
    """
    if key_file is None:
        message = "This server has no key to keep the secrets of webhooks with (webhooks.key_file)."
        raise InvalidRequest(message, code="webhooks_not_configured")
    return read_keys(key_file, _SETTING).encrypt(secret.encode()).decode()


def unseal(stored: str, key_file: Path | None) -> str:
    """Return the secret. One that was stored before there were keys is what it is.

    Raises:
        ConfigurationError: none of the keys opens it.
    """
    if stored.startswith(events.SECRET_PREFIX):
        return stored
    try:
        if key_file is not None:
            return read_keys(key_file, _SETTING).decrypt(stored).decode()
    except InvalidToken:
        pass
    message = "A webhook's secret was sealed with a key that is not in webhooks.key_file."
    raise ConfigurationError(message)


def read_keys(path: Path, setting: str) -> MultiFernet:
    """Return the keys of a file, which the setting of this name names.

    Raises:
        ConfigurationError: the file cannot be read, or holds no key.
    """
    try:
        lines = [line.partition("#")[0].strip() for line in path.read_text().splitlines()]
        # The first one of a MultiFernet seals.
        return MultiFernet([Fernet(line) for line in reversed(lines) if line])
    except (OSError, ValueError) as error:
        message = f"{setting} has no keys that can be read: {type(error).__name__}."
        raise ConfigurationError(message) from error
