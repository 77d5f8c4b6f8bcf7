"""Puts the stack together: which programs, in which order, with which ports and secrets."""

import asyncio
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from api.stack import credentials, postgres, valkey
from api.stack.program import Program, free_port, http_ok, promptmill, require_free
from api.stack.redis_users import Role
from api.stack.supervisor import Supervisor
from jobs import db, keys, webhooks
from jobs.errors import ConfigurationError
from jobs.local import Address, address_file, running_stack
from jobs.settings import Settings

__all__ = ["LOOPBACK", "Address", "Stack", "address_file", "running_stack"]

LOOPBACK = "127.0.0.1"
# A worker loads its model before it is ready: 54 GB from a disk of 100 MB/s, and vLLM compiles for two minutes. One
# that cannot start ends long before.
SLOW_START_SECONDS = 900


class Stack:
    """`promptmill up`. What the settings name a URL for is used, not started."""

    def __init__(self, settings: Settings, report: Callable[[str], None]) -> None:
        self._settings, self._report = settings, report
        self._home = settings.data_dir.resolve()
        self._logs = self._home / "logs"
        self._own_postgres = "database_url" not in settings.model_fields_set
        self._own_valkey = "redis_url" not in settings.model_fields_set
        self._postgres_port, self._valkey_port = free_port(), free_port()

    async def run(self, on_ready: Callable[[Address], None]) -> None:
        """Start everything, call `on_ready`, and stop everything again on SIGINT, SIGTERM or a failure.

        Raises:
            ConfigurationError: a port is taken, a wheel is missing, or another stack uses the data directory.
            StartFailed: a program did not start; the others are stopped.
        """
        with self._lock():
            # Left behind by a stack that was killed.
            address_file(self._home).unlink(missing_ok=True)
            self._require_ports()
            self._credentials = credentials.load(self._home)
            if self._own_postgres:
                postgres.initialise(self._home / "postgres", self._credentials.postgres)
            await self._supervise(on_ready)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        self._home.mkdir(parents=True, exist_ok=True)
        self._home.chmod(0o700)
        with (self._home / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                message = f"Another `promptmill up` uses {self._home}. Stop it, or set PROMPTMILL_DATA_DIR."
                raise ConfigurationError(message) from None
            yield

    def _require_ports(self) -> None:
        require_free(self._settings.api.host, self._settings.api.port, "PROMPTMILL_API__PORT")
        require_free(LOOPBACK, self._settings.flower.port, "PROMPTMILL_FLOWER__PORT")

    async def _supervise(self, on_ready: Callable[[Address], None]) -> None:
        supervisor = Supervisor(self._logs, self._report)
        await supervisor.open()
        starting = asyncio.create_task(self._start(supervisor))
        stopping = asyncio.create_task(supervisor.stopping.wait())
        try:
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                address = starting.result()
                supervisor.watch()
                with self._published(address):
                    on_ready(address)
                    await stopping
        finally:
            starting.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await starting
            await supervisor.stop_all()
            stopping.cancel()

    async def _start(self, supervisor: Supervisor) -> Address:
        if self._own_postgres:
            await self._step(supervisor, self._postgres())
            await asyncio.to_thread(postgres.ensure_database, self._postgres_port, self._credentials.postgres)
        if self._own_valkey:
            await self._step(
                supervisor, valkey.program(self._home / "valkey", self._valkey_port, self._credentials.valkey)
            )
        migrate = Program(
            "migrate", promptmill("migrate"), runs_to_its_end=True, environment=self._environment("producer")
        )
        await self._step(supervisor, migrate)
        if self._own_postgres:
            await asyncio.to_thread(self._let_processes_in)
        await asyncio.to_thread(self._seal_secrets)
        api_key = await asyncio.to_thread(self._api_key)
        # These do not need each other to start.
        await asyncio.gather(*(self._step(supervisor, program) for program in self._services()))
        return self._address(api_key)

    async def _step(self, supervisor: Supervisor, program: Program) -> None:
        await supervisor.start(program)
        self._report("the tables are ready" if program.runs_to_its_end else f"{program.name} is ready")

    def _postgres(self) -> Program:
        return postgres.program(self._home / "postgres", self._postgres_port, self._credentials.postgres)

    def _let_processes_in(self) -> None:
        passwords = {name: self._password_of(name) for name in ("api", "worker", "reconciler")}
        credentials.save(self._home, self._credentials)
        postgres.ensure_users(self._database_url(), passwords)

    def _password_of(self, process: str) -> str:
        return str(getattr(self._credentials, f"postgres_{process}"))

    def _services(self) -> list[Program]:
        host, port, flower_port = self._settings.api.host, self._settings.api.port, self._settings.flower.port
        return [
            Program(
                "api",
                promptmill("serve"),
                lambda: http_ok(host, port, "/readyz"),
                environment=self._environment_of("api", "producer"),
                grace_seconds=self._settings.api.drain_seconds + 5,
            ),
            Program(
                "reconciler",
                promptmill("reconciler"),
                ready_event="reconciler_ready",
                environment=self._environment_of("reconciler", "producer"),
                grace_seconds=self._settings.webhooks.timeout_seconds + 5,
            ),
            Program(
                "worker",
                promptmill("worker"),
                ready_event="worker_ready",
                environment=self._environment_of("worker", "worker"),
                grace_seconds=self._settings.worker.drain_seconds + 10,
                start_seconds=SLOW_START_SECONDS,
            ),
            Program(
                "flower",
                promptmill("flower"),
                lambda: http_ok(LOOPBACK, flower_port, "/healthcheck"),
                # It reads Redis only.
                environment={
                    **self._environment("viewer"),
                    "PROMPTMILL_DATABASE_URL": "postgresql://127.0.0.1:1/none",
                },
            ),
        ]

    def _environment_of(self, process: str, role: Role) -> dict[str, str]:
        """Return the environment of a process that logs in to Postgres as itself, if Postgres is ours."""
        if not self._own_postgres:
            return self._environment(role)
        url = postgres.url(self._postgres_port, self._password_of(process), user=postgres.process_user(process))
        return {**self._environment(role), "PROMPTMILL_DATABASE_URL": url}

    def _environment(self, role: Role) -> dict[str, str]:
        return {
            **os.environ,
            "PROMPTMILL_DATABASE_URL": self._database_url(),
            "PROMPTMILL_REDIS_URL": self._redis_url(role),
            "PROMPTMILL_FLOWER__PASSWORD": self._flower_password(),
            "PROMPTMILL_WEBHOOKS__KEY_FILE": str(self._webhook_key_file()),
        }

    def _database_url(self) -> str:
        if self._own_postgres:
            return postgres.url(self._postgres_port, self._credentials.postgres)
        return self._settings.database_url.get_secret_value()

    def _redis_url(self, role: Role) -> str:
        if self._own_valkey:
            return valkey.url(self._valkey_port, self._credentials.valkey, role)
        return self._settings.redis_url.get_secret_value()

    def _flower_password(self) -> str:
        chosen = self._settings.flower.password
        return chosen.get_secret_value() if chosen else self._credentials.flower

    def _webhook_key_file(self) -> Path:
        return self._settings.webhooks.key_file or credentials.webhook_key_file(self._home)

    def _seal_secrets(self) -> None:
        """Seal the secrets of webhooks, also those of a release that did not. Without their key the rest works on."""
        hooks = self._settings.webhooks.model_copy(update={"key_file": self._webhook_key_file()})
        engine = db.make_engine(self._database_url(), connections=1)
        try:
            with db.transaction(engine, point="seal_secrets") as connection:
                webhooks.seal_all(connection, hooks)
        except ConfigurationError as error:
            self._report(error.message)
        finally:
            engine.dispose()

    def _api_key(self) -> str:
        """Return the key that the stack shows: the one from last time if it still opens anything, else a new one."""
        engine = db.make_engine(self._database_url(), connections=1)
        try:
            with db.transaction(engine, point="keep_api_key") as connection:
                if not self._credentials.api_key or not keys.is_valid(connection, self._credentials.api_key):
                    key = keys.create(connection, project=keys.DEFAULT_PROJECT, name="promptmill up")
                    self._credentials.api_key = key
            credentials.save(self._home, self._credentials)
        finally:
            engine.dispose()
        assert self._credentials.api_key
        return self._credentials.api_key

    def _address(self, api_key: str) -> Address:
        return Address(
            base_url=f"http://{self._settings.api.host}:{self._settings.api.port}/v1",
            api_key=api_key,
            flower_url=f"http://{LOOPBACK}:{self._settings.flower.port}",
            flower_user=self._settings.flower.user,
            flower_password=self._flower_password(),
            log_dir=str(self._logs),
            database_url=self._database_url(),
            webhook_key_file=str(self._webhook_key_file()),
            redis_url=self._redis_url("producer"),
        )

    @contextmanager
    def _published(self, address: Address) -> Iterator[None]:
        path = address_file(self._home)
        path.touch(mode=0o600)
        path.write_text(json.dumps(asdict(address)))
        try:
            yield
        finally:
            path.unlink()
