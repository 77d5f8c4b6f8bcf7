"""Profiles: settings for one model on one kind of GPU, as TOML files (docs/profiles.md).

Those that are shipped are named after their place below `profiles/`: `gemma-3-27b-it/h100-fp8`.
"""

from pathlib import Path

from jobs.errors import ConfigurationError

SHIPPED = Path(__file__).resolve().parent.parent / "profiles"
SUFFIX = ".toml"


def names() -> list[str]:
    """Return the names of the shipped profiles, sorted."""
    return sorted(path.relative_to(SHIPPED).with_suffix("").as_posix() for path in SHIPPED.rglob(f"*{SUFFIX}"))


def find(name: str) -> Path:
    """Return the file of a shipped profile, or of one's own: a path that ends in `.toml`.

    Raises:
        ConfigurationError: there is none; the message lists those that are shipped.
    """
    path = SHIPPED / f"{name}{SUFFIX}" if name in names() else Path(name)
    if path.suffix != SUFFIX or not path.is_file():
        message = f"There is no profile {name}. Shipped: {', '.join(names())}. Or name a file that ends in {SUFFIX}."
        raise ConfigurationError(message)
    return path
