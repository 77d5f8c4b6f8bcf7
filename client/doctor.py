"""Looks at everything that a batch needs, and says how to mend what is wrong. Changes nothing."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psycopg
import redis

import jobs
from client import config
from client.server import connected
from jobs import local
from jobs.errors import InvalidRequest, PromptmillError, Unavailable
from jobs.settings import Settings

State = Literal["ok", "warning", "bad", "skipped"]
GB = 10**9
# Postgres stops at a full disk; 50,000 rows with their results take up to a gigabyte.
BAD_DISK_BYTES, LOW_DISK_BYTES = GB, 10 * GB
MADE_WITH_POSTGRES = 18
SECONDS = 5
# Heartbeats come every ten seconds.
_WORKERS = """
SELECT engine, models FROM workers
WHERE stopped_at IS NULL AND seen_at > app_now() - interval '2 minutes' ORDER BY started_at
"""
MIGRATIONS = Path(jobs.__file__).resolve().parent.parent / "migrations" / "versions"


@dataclass(frozen=True)
class Finding:
    """What one look came to."""

    name: str
    state: State
    found: str
    mend: str = ""


def examine(settings: Settings, base_url: str | None, api_key: str | None) -> Iterator[Finding]:
    """Yield a finding for each part."""
    stack = local.running_stack(settings.data_dir.resolve())
    looks: list[Callable[[], Iterator[Finding]]] = [
        lambda: _api(base_url, api_key),
        lambda: _postgres(_named(settings, "database_url", stack.database_url if stack else None)),
        lambda: _redis(_named(settings, "redis_url", stack.redis_url if stack else None)),
        _gpu,
        lambda: _disk(settings.data_dir),
    ]
    for look in looks:
        yield from look()


def _named(settings: Settings, field: str, of_stack: str | None) -> str | None:
    """Return the URL that the settings name, else the running stack's; None if the default would be a guess."""
    if field in settings.model_fields_set:
        return str(getattr(settings, field).get_secret_value())
    return of_stack


def _api(base_url: str | None, api_key: str | None) -> Iterator[Finding]:
    try:
        server = config.find(base_url, api_key)
        with connected(server, retries=0) as sdk:
            models = [model.id for model in sdk.models.list()]
    except Unavailable as error:
        yield Finding("API", "bad", error.message, "Start it: `promptmill up`, or `promptmill serve`.")
    except InvalidRequest as error:
        mend = "Make a key on the server: `promptmill keys create`." if error.code == "invalid_api_key" else ""
        yield Finding("API", "bad", error.message, mend)
    except PromptmillError as error:
        yield Finding("API", "bad", error.message)
    else:
        yield Finding("API", "ok", f"{server.base_url}, named by {server.named_by}")
        yield _models(models)


def _models(models: list[str]) -> Finding:
    if models:
        return Finding("models", "ok", ", ".join(models))
    mend = "Start a worker: `promptmill worker`. Its log says why if it does not start."
    return Finding("models", "bad", "No worker has served a model in the last day.", mend)


def _postgres(url: str | None) -> Iterator[Finding]:
    if url is None:
        yield Finding("Postgres", "skipped", "not named here (PROMPTMILL_DATABASE_URL)")
        return
    try:
        with psycopg.connect(url, connect_timeout=SECONDS, autocommit=True) as connection:
            yield _postgres_version(connection.info.server_version // 10_000)
            yield _durability(connection)
            yield from _tables(connection)
    except psycopg.Error as error:
        mend = "Start it, or correct PROMPTMILL_DATABASE_URL."
        yield Finding("Postgres", "bad", " ".join(str(error).split()), mend)


def _postgres_version(version: int) -> Finding:
    if version < MADE_WITH_POSTGRES:
        return Finding("Postgres", "warning", f"version {version}", f"Made and tested with {MADE_WITH_POSTGRES}.")
    return Finding("Postgres", "ok", f"version {version}")


def _durability(connection: "psycopg.Connection[tuple[object, ...]]") -> Finding:
    row = connection.execute("SHOW fsync").fetchone()
    if row == ("on",):
        return Finding("durability", "ok", "fsync is on")
    return Finding("durability", "warning", "fsync is off", "Switch it on: a power cut takes accepted work along.")


def _tables(connection: "psycopg.Connection[tuple[object, ...]]") -> Iterator[Finding]:
    row = connection.execute("SELECT to_regclass('alembic_version') IS NOT NULL").fetchone()
    if not (row and row[0]):
        yield Finding("tables", "bad", "There are none.", "Run `promptmill migrate`.")
        return
    have = connection.execute("SELECT max(version_num) FROM alembic_version").fetchone()
    newest = max((path.name[:4] for path in MIGRATIONS.glob("[0-9]*.py")), default=None)
    if have and newest and str(have[0]) != newest:
        mend = "Run `promptmill migrate`." if str(have[0]) < newest else "Update Promptmill here: its code is older."
        yield Finding("tables", "bad", f"at {have[0]}, the newest known here is {newest}", mend)
        return
    yield Finding("tables", "ok", f"at {have and have[0]}")
    yield _engine(connection)


def _engine(connection: "psycopg.Connection[tuple[object, ...]]") -> Finding:
    workers = connection.execute(_WORKERS).fetchall()
    if not workers:
        mend = "Start one: `promptmill worker`. Its log says why if it does not start."
        return Finding("engine", "bad", "No worker is alive: batches wait.", mend)
    return Finding("engine", "ok", "; ".join(f"{engine}: {', '.join(map(str, names))}" for engine, names in workers))  # type: ignore[call-overload]  # text[]


def _redis(url: str | None) -> Iterator[Finding]:
    if url is None:
        yield Finding("Redis", "skipped", "not named here (PROMPTMILL_REDIS_URL)")
        return
    try:
        with redis.Redis.from_url(url, socket_timeout=SECONDS, socket_connect_timeout=SECONDS) as broker:
            broker.ping()
            # The configuration itself is for no process to read (api/stack/redis_users.py).
            policy = broker.info("memory").get("maxmemory_policy")
    except redis.RedisError as error:
        mend = "Start it, or correct PROMPTMILL_REDIS_URL. Until then batches run, but start up to 10 s later."
        yield Finding("Redis", "bad", " ".join(str(error).split()), mend)
        return
    if policy not in (None, "noeviction"):
        yield Finding("Redis", "warning", f"maxmemory-policy {policy}", "Set it to noeviction: hints may vanish.")
        return
    yield Finding("Redis", "ok", "answers")


def _gpu() -> Iterator[Finding]:
    program = shutil.which("nvidia-smi")
    if program is None:
        yield Finding("GPU", "skipped", "none here (no nvidia-smi): llama.cpp runs on the CPU, vLLM needs one")
        return
    query = [program, "--query-gpu=name,memory.total,memory.used,driver_version", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False)  # noqa: S603  no words of others
    if answer.returncode or not answer.stdout.strip():
        mend = "Look at `nvidia-smi`: the driver may not fit the kernel."
        yield Finding("GPU", "bad", " ".join((answer.stderr or answer.stdout).split()) or "nvidia-smi failed", mend)
        return
    for line in answer.stdout.splitlines():
        yield Finding("GPU", "ok", line.strip())


def _disk(data_dir: Path) -> Iterator[Finding]:
    place = next(path for path in (data_dir.resolve(), *data_dir.resolve().parents) if path.exists())
    free = shutil.disk_usage(place).free
    state: State = "bad" if free < BAD_DISK_BYTES else "warning" if free < LOW_DISK_BYTES else "ok"
    mend = "" if state == "ok" else "Free some, or move PROMPTMILL_DATA_DIR: Postgres stops at a full disk."
    yield Finding("disk", state, f"{free / GB:.1f} GB free at {place}", mend)
