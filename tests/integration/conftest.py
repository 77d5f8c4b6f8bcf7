from collections.abc import Iterator
from typing import Any

import invariants
import pytest
import services
from payloads import CHAT, numbered
from sqlalchemy import Engine, text
from starlette.testclient import TestClient
from web import Client, another, serving

from jobs import batches, claims, db, fleet, keys, leases, lifecycle, retention
from jobs.batches import NewBatch
from jobs.claims import Claimant
from jobs.idempotency import Call
from jobs.ingest import Ingest
from jobs.keys import Caller
from jobs.leases import Lease, Written
from jobs.outcomes import Outcome, success
from jobs.protocol import BATCH_ENDPOINTS
from jobs.settings import Settings
from jobs.states import BatchStatus


class Domain:
    """The domain, driven without API and worker."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.settings = Settings(shards={"max_requests": 10})
        with db.transaction(engine) as connection:
            self.caller = keys.authenticate(connection, keys.create(connection, project="p", name=""))
            self.project_id = self.caller.project_id
            fleet.register(connection, "worker_1", engine="none", models=["scripted"], endpoints=BATCH_ENDPOINTS)

    def ingest(self, purpose: str = "batch", limits: dict[str, int] | None = None) -> Ingest:
        return Ingest(self.engine, self.settings.limits.model_copy(update=limits or {}), self.project_id, purpose)

    def upload(
        self, data: bytes, chunk: int = 1_000_000, limits: dict[str, int] | None = None, purpose: str = "batch"
    ) -> str:
        ingest = self.ingest(purpose, limits)
        try:
            for start in range(0, len(data), chunk):
                ingest.feed(data[start : start + chunk])
            return self.finish(ingest, purpose)
        except BaseException:
            ingest.discard()
            raise

    def call(self, caller: Caller) -> Call:
        return Call(caller, "/v1/files")

    def finish(self, ingest: Ingest, purpose: str = "batch") -> str:
        return ingest.finish(self.call(self.caller), filename="a.jsonl", purpose=purpose, expires_after_seconds=None)

    def sweep(self) -> bool:
        seconds = self.settings.retention.unfinished_upload_seconds
        with db.transaction(self.engine) as connection:
            return retention.sweep_file(connection, unfinished_seconds=seconds)

    def later(self, interval: str, *engines: Engine) -> None:
        """Set the clock forward, for connections of these engines too."""
        name = self.engine.url.database
        self.execute(f"ALTER DATABASE {name} SET promptmill.clock_offset = '{interval}'")
        for engine in (self.engine, *engines):
            engine.dispose()

    def create(self, file_id: str, endpoint: str = CHAT, metadata: dict[str, str] | None = None) -> str:
        with db.transaction(self.engine) as connection:
            return batches.create(
                connection, self.project_id, NewBatch(file_id, endpoint, "24h", 86_400, metadata), self.settings
            )

    def batch(self, batch_id: str) -> Any:
        with db.transaction(self.engine) as connection:
            return batches.find(connection, self.project_id, batch_id, show_partial=False)

    def new_batch(self, count: int) -> str:
        return self.create(self.upload(numbered(count)))

    def shards(self, batch_id: str) -> list[Any]:
        with self.engine.connect() as connection:
            statement = text("SELECT * FROM shards WHERE batch_id = :id ORDER BY number")
            return list(connection.execute(statement, {"id": batch_id}))

    def claim(self, shard_id: str, seconds: float = 60, worker: str = "worker_1") -> Lease | None:
        with db.transaction(self.engine) as connection:
            claimed = claims.claim(connection, shard_id, Claimant(worker, ["scripted"], BATCH_ENDPOINTS, seconds))
        assert not isinstance(claimed, claims.BeAlone)
        return claimed

    def claim_soon(self, shard_id: str) -> Lease:
        """Claim a shard of a batch that the service made.

        While it notes the hint it holds the shard's row, and a claim would take another shard instead.
        """
        noted = "SELECT FROM shards WHERE id = :id AND hinted_at IS NOT NULL"
        services.wait_until(lambda: self.execute(noted, id=shard_id), "a hint")
        lease = self.claim(shard_id)
        assert lease and lease.shard_id == shard_id
        return lease

    def rows(self, lease: Lease) -> list[int]:
        with db.transaction(self.engine) as connection:
            return [row.line_no for row in leases.load_rows(connection, lease)]

    def write(self, lease: Lease, lines: list[int], *, uncertain: bool = False) -> dict[leases.Held, bool]:
        outcomes = [success(line_no, f"row-{line_no - 1}", {"x": line_no}) for line_no in lines]
        return self.write_outcomes(lease, outcomes, uncertain=uncertain)

    def write_outcomes(
        self, lease: Lease, outcomes: list[Outcome], *, uncertain: bool = False
    ) -> dict[leases.Held, bool]:
        group = Written(lease.shard_id, lease.token, lease.batch_id, outcomes)
        with db.transaction(self.engine) as connection:
            return leases.write(connection, [group], uncertain=uncertain)

    def settle(self, batch_id: str) -> BatchStatus | None:
        with db.transaction(self.engine) as connection:
            return lifecycle.settle(connection, batch_id, self.settings.retention)

    def release(self, lease: Lease) -> str | None:
        with db.transaction(self.engine) as connection:
            return leases.release(connection, lease.shard_id, lease.token)

    def execute(self, statement: str, **values: Any) -> Any:
        with self.engine.begin() as connection:
            result = connection.execute(text(statement), values)
            return result.all() if result.returns_rows else result.rowcount


@pytest.fixture
def domain(engine: Engine) -> Iterator[Domain]:
    yield Domain(engine)
    invariants.check(engine)


@pytest.fixture
def http(domain: Any, database_url: str, servers: services.Servers) -> Iterator[TestClient]:
    with serving(database_url, servers) as client:
        yield client


@pytest.fixture
def client(domain: Any, http: TestClient) -> Client:
    return another(domain.engine, http, "mine")
