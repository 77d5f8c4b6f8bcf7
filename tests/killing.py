"""A process that is killed at a failpoint, and what is done around it in the test's own process."""

import signal
from collections.abc import Callable
from typing import Any

import services
from payloads import CHAT
from pydantic import SecretStr
from sqlalchemy import text

from jobs import batches, claims, db, fleet, keys, leases, lifecycle
from jobs.batches import NewBatch
from jobs.claims import Claimant
from jobs.dispatch import Dispatcher
from jobs.failpoints import VARIABLE
from jobs.idempotency import Call
from jobs.ingest import Ingest
from jobs.leases import Lease, Written
from jobs.outcomes import success
from jobs.protocol import BATCH_ENDPOINTS
from jobs.settings import Settings
from workers.reconciler import Reconciler

MODEL = "scripted"
REQUESTS_A_SHARD = 5
# Leases so short that a dead worker's shards are soon free; nothing depends on their being kept.
SETTINGS = {
    **services.SHORT_LEASES,
    "PROMPTMILL_WORKER__ENGINE": "scripted",
    "PROMPTMILL_SHARDS__MAX_REQUESTS": str(REQUESTS_A_SHARD),
    "PROMPTMILL_SHARDS__LEASE_SECONDS": "3",
    "PROMPTMILL_SHARDS__HEARTBEAT_SECONDS": "0.5",
    "PROMPTMILL_RECONCILER__SWEEP_SECONDS": "0.2",
    "PROMPTMILL_RECONCILER__HINT_SECONDS": "1",
    "PROMPTMILL_WORKER__POLL_SECONDS": "5",
}


class Doomed:
    """One of our processes, which dies at a failpoint, once. Whoever starts it again leaves the failpoint out."""

    def __init__(self, stack: services.Stack, command: str, point: str, *, ready: str, nth: int = 1) -> None:
        self._stack, self._command, self._ready, self._point = stack, command, ready, point
        self.deaths = 0
        # Not waited for: it may die before it is ready.
        self.process = stack.start(command, **{VARIABLE: f"{point}:kill9:{nth}"})

    def is_dead(self) -> bool:
        return self.process.popen.poll() is not None

    def wait_ready(self) -> None:
        """Return when it is ready or dead."""
        services.wait_until(lambda: self.is_dead() or self._ready in self.process.log.read_text(), "it is ready")

    def bury(self) -> None:
        """Note that it died, at its failpoint and in no other way."""
        services.wait_until(self.is_dead, "it comes by the failpoint")
        assert self.process.popen.returncode == -signal.SIGKILL, self.process.tail()
        assert reached(self.process, self._point), self.process.tail()
        self.deaths += 1

    def revive(self) -> None:
        """Start it again if it is dead."""
        if self.is_dead():
            self.bury()
            self.process = self._stack.start(self._command, wait_for=self._ready)


def reached(process: services.Process, point: str) -> bool:
    return f"failpoint_reached {point}" in process.log.read_text()


class Backstage:
    """What clients, workers and the reconciler do, done here and now, on the database of a stack."""

    def __init__(self, stack: services.Stack) -> None:
        self.engine = stack.engine()
        self.settings = Settings(
            database_url=SecretStr(stack.database_url),
            redis_url=SecretStr(stack.redis_url),
            shards={"max_requests": REQUESTS_A_SHARD},
            reconciler={"hint_seconds": 1},
            webhooks={"allow_http": True, "allowed_networks": ["127.0.0.0/8"]},
        )
        self._reconciler = Reconciler(self.settings)
        self._dispatcher = Dispatcher(self.engine, self.settings)
        with db.transaction(self.engine) as connection:
            self.key = keys.create(connection, project="p", name="test")
            self.caller = keys.authenticate(connection, self.key)
            # Batches are taken for models that somebody serves.
            fleet.register(connection, "worker_backstage", engine="none", models=[MODEL], endpoints=BATCH_ENDPOINTS)
        self.project_id = self.caller.project_id

    def close(self) -> None:
        self._reconciler._dispatcher.close()
        self._reconciler._database.dispose()
        self._dispatcher.close()
        self.engine.dispose()

    def upload(self, data: bytes) -> str:
        ingest = Ingest(self.engine, self.settings.limits, self.project_id)
        ingest.feed(data)
        call = Call(self.caller, "/v1/files")
        return ingest.finish(call, filename="a.jsonl", purpose="batch", expires_after_seconds=None)

    def submit(self, data: bytes) -> str:
        """Upload a file and create a batch of it, of which nobody is told."""
        new = NewBatch(self.upload(data), CHAT, "24h", 86_400)
        with db.transaction(self.engine) as connection:
            return batches.create(connection, self.project_id, new, self.settings)

    def hint(self, batch_id: str) -> None:
        self._dispatcher.hint_batch(batch_id)

    def hints(self) -> int:
        """Return how many hints wait for workers."""
        return self._dispatcher._waiting(MODEL)

    def cancel(self, batch_id: str) -> None:
        with db.transaction(self.engine) as connection:
            batches.cancel(connection, self.project_id, batch_id)

    def status(self, batch_id: str) -> str:
        (row,) = self.execute("SELECT status FROM batches WHERE id = :id", id=batch_id)
        return str(row.status)

    def sweep(self) -> None:
        """Do what the reconciler does, once."""
        # The sweep before this one may hold its lock until Postgres has seen its connection go.
        services.wait_until(self._reconciler.sweep, "no other sweep is at work")

    def claim(self, seconds: float = 60) -> Lease | None:
        claimant = Claimant("worker_backstage", [MODEL], BATCH_ENDPOINTS, seconds)
        with db.transaction(self.engine) as connection:
            claimed = claims.claim_unhinted(connection, claimant, hint_seconds=0)
        assert not isinstance(claimed, claims.BeAlone), "it holds nothing"
        return claimed

    def work(self) -> None:
        """Run all that is queued, and end the batches."""
        while lease := self.claim():
            with db.transaction(self.engine) as connection:
                rows = leases.load_rows(connection, lease)
                outcomes = [success(row.line_no, row.custom_id, {}) for row in rows]
                written = Written(lease.shard_id, lease.token, lease.batch_id, outcomes)
                leases.write(connection, [written], uncertain=False)
                lifecycle.settle(connection, lease.batch_id, self.settings.retention)

    def execute(self, statement: str, **values: Any) -> Any:
        with self.engine.begin() as connection:
            result = connection.execute(text(statement), values)
            return result.all() if result.returns_rows else result.rowcount


def keep_alive(process: Doomed, backstage: Backstage, condition: Callable[[], object], what: str) -> None:
    """Wait until `condition` is true, start the process again if it dies, and do the reconciler's work meanwhile."""

    def look() -> object:
        process.revive()
        backstage.sweep()
        return condition()

    services.wait_until(look, what)
