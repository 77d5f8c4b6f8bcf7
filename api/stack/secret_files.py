"""The secrets of a deployment as files, one for each process and purpose (`promptmill secrets`, docs/deploy.md).

Nothing but the folder itself keeps others out: only its owner may enter. The files can be read by everybody, since a
container that is given one reads it as a user of its own.
"""

from pathlib import Path
from urllib.parse import unquote, urlsplit

import psycopg

from api.stack import postgres, redis_users, valkey
from api.stack.credentials import new_password, write
from api.stack.redis_users import Role
from jobs import settings, vault
from jobs.errors import ConfigurationError, Unavailable

PROCESSES = ("api", "worker", "reconciler")
POSTGRES_PORT, REDIS_PORT = 5432, 6379


def ensure(folder: Path, postgres_host: str, redis_host: str) -> list[str]:
    """Make the files that are not there yet; return their names. Those that are there stay as they are.

    Raises:
        ConfigurationError: the folder is somebody else's to enter too.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_mode & 0o077:
        message = f"{folder} can be entered by others, and what is in it be read: `chmod 700` it."
        raise ConfigurationError(message)
    before = set(folder.iterdir())
    owner = _ensure(folder, "postgres_password", new_password())
    redis_secret = _ensure(folder, "valkey_password", new_password())
    for name, content in _derived(owner, redis_secret, postgres_host, redis_host).items():
        _ensure(folder, name, content)
    return sorted(path.name for path in set(folder.iterdir()) - before)


def _derived(owner: str, redis_secret: str, postgres_host: str, redis_host: str) -> dict[str, str]:
    """Return the files beside the two passwords of administrators, with new passwords where none follows from those."""

    def database(user: str, password: str) -> str:
        return postgres.url(POSTGRES_PORT, password, user=user, host=postgres_host)

    def redis(role: Role) -> str:
        return valkey.url(REDIS_PORT, redis_secret, role, redis_host)

    return {
        "owner_database_url": database(postgres.USER, owner),
        **{f"{each}_database_url": database(postgres.process_user(each), new_password()) for each in PROCESSES},
        **{f"{role}_redis_url": redis(role) for role in redis_users.ROLES},
        "valkey_users": redis_users.lines(redis_secret),
        "flower_password": new_password(),
        "metrics_token": new_password(),
        "web_keys": vault.new_key(),
        "webhook_keys": vault.new_key(),
    }


def _ensure(folder: Path, name: str, content: str) -> str:
    """Write a file unless it is there; return what is in it."""
    path = folder / name
    if not path.exists():
        write(path, content + "\n", 0o644)
    return path.read_text().strip()


def let_processes_in(administrator: str, files: list[Path]) -> list[str]:
    """Let the users of the URLs in `files` log in to Postgres, with the passwords that stand there. Return their names.

    Raises:
        ConfigurationError: a file holds no URL of a user of one of the processes.
        Unavailable: Postgres is away, is not migrated, or takes the administrator for none.
    """
    processes = dict(_process(path) for path in files)
    try:
        postgres.ensure_users(administrator, processes)
    except psycopg.Error as error:
        message = "Postgres lets no processes in:"
        raise Unavailable(message) from error
    return [postgres.process_user(process) for process in processes]


def _process(path: Path) -> tuple[str, str]:
    url = urlsplit(settings.read_secret(str(path), path))
    process = next((each for each in PROCESSES if url.username == postgres.process_user(each)), None)
    if process is None or not url.password:
        users = ", ".join(postgres.process_user(each) for each in PROCESSES)
        message = f"{path} holds no URL of Postgres with one of the users {users} and a password."
        raise ConfigurationError(message)
    return process, unquote(url.password)
