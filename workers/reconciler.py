"""The reconciler: takes back what died, repeats what got lost, ends what is over. Any number may run; one works."""

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from sqlalchemy import text

from jobs import (
    alive,
    breakers,
    db,
    dispatch,
    idempotency,
    leases,
    lifecycle,
    outbox,
    retention,
    suspects,
    telemetry,
)
from jobs.errors import Unavailable
from jobs.settings import Settings
from workers import reconciler_metrics
from workers.ends import end_if_over

log = telemetry.get_logger(__name__)

# Any constant will do, as long as nothing else locks on it.
LOCK = 0x7265636F  # "reco"
# So that a great clean-up holds up nothing else.
FILES_A_SWEEP = 20


class Reconciler:
    """A sweep is a row of idempotent steps, each in transactions of its own; one that fails stops no other."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._database = db.make_engine(
            settings.database_url.get_secret_value(), connections=2, statement_seconds=settings.statement_seconds
        )
        self._locks = self._database.execution_options(isolation_level="AUTOCOMMIT")
        self._dispatcher = dispatch.Dispatcher(self._database, settings)
        self._stopping = threading.Event()

    def run(self) -> None:
        """Sweep until SIGTERM or SIGINT."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stopping.set())
        log.info("reconciler_ready")
        while not self._stopping.is_set():
            try:
                self._counted_sweep()
            except Exception as error:  # noqa: BLE001  Postgres away, say; it tries again
                reconciler_metrics.SWEEPS.labels("failed").inc()
                log.warning("sweep_failed", error=db.reason(error))
            alive.note(self._settings.alive_file)
            self._stopping.wait(self._settings.reconciler.sweep_seconds)

    def _counted_sweep(self) -> None:
        started = time.monotonic()
        if alone := self.sweep():
            reconciler_metrics.SWEEP_SECONDS.observe(time.monotonic() - started)
            reconciler_metrics.LAST_SWEEP.set_to_current_time()
        reconciler_metrics.SWEEPS.labels("done" if alone else "another").inc()

    def sweep(self) -> bool:
        """Do everything that is due, unless another reconciler is at it; return whether this one was."""
        with self._alone() as alone:
            if alone:
                for step in self._steps():
                    if not self._stopping.is_set():
                        self._attempt(step)
            return alone

    def _steps(self) -> tuple[Callable[[], None], ...]:
        return (
            self._recover,
            self._recover_with_rows,
            self._settle,
            self._hint,
            self._sweep_files,
            self._forget_calls,
            self._forget_messages,
            self._forget_breakers,
        )

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        """Yield whether this is the only reconciler at work. The lock goes with its connection, however that ends."""
        with self._locks.connect() as connection:
            alone = bool(connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": LOCK}).scalar_one())
            try:
                yield alone
            finally:
                if alone:
                    # Not back into the pool, where the lock would be kept if it could not be given back.
                    connection.detach()

    def _attempt(self, step: Callable[[], None]) -> None:
        try:
            step()
        except Exception as error:  # noqa: BLE001  Redis away, say; the next sweep tries again
            reconciler_metrics.FAILED_STEPS.labels(step.__name__.strip("_")).inc()
            log.warning("step_failed", step=step.__name__.strip("_"), error=db.reason(error))

    def _recover(self) -> None:
        with db.transaction(self._database, point="recover_leases") as connection:
            recovered = leases.recover(connection)
        if recovered:
            reconciler_metrics.RECOVERED.labels("none").inc(len(recovered))
            log.warning("leases_ended", shard_ids=recovered)

    def _recover_with_rows(self) -> None:
        with db.reading(self._database) as connection:
            shard_ids = suspects.lost(connection)
        self._each(shard_ids, self._take_back, "take_back_failed")

    def _take_back(self, shard_id: str) -> None:
        shards = self._settings.shards
        with db.transaction(self._database, point="take_back") as connection:
            state = suspects.take_back(
                connection, shard_id, most_deaths=shards.most_deaths, grace_seconds=shards.lease_seconds
            )
        if state:
            # A request that waits for its worker to show that it lives comes by again.
            reconciler_metrics.RECOVERED.labels("aboard").inc(state != "running")
            log.warning("lease_ended_with_rows", shard_id=shard_id, state=state)

    def _settle(self) -> None:
        with db.reading(self._database) as connection:
            due = lifecycle.to_settle(connection)
        self._each(due, self._settle_one, "settle_failed")

    def _settle_one(self, batch_id: str) -> None:
        end_if_over(self._database, batch_id, self._settings.retention, point="settle_missed", tries=1)

    def _each(self, ids: Sequence[str], work: Callable[[str], None], event: str) -> None:
        """Do `work` for each id, until this process is to stop. One that fails is logged, and holds up no other.

        Raises:
            Unavailable: Postgres is away, and would be for the next one.
        """
        for each in ids:
            if self._stopping.is_set():
                return
            try:
                work(each)
            except Exception as error:  # noqa: BLE001  one that cannot be done holds up no other
                log.warning(event, id=each, error=db.reason(error))
                if isinstance(error, Unavailable):
                    self._require_postgres()

    def _require_postgres(self) -> None:
        """Return if Postgres answers: one statement that takes too long is that batch's matter."""
        with db.reading(self._database) as connection:
            connection.execute(text("SELECT 1"))

    def _hint(self) -> None:
        if sent := self._dispatcher.hint_overdue(self._settings.reconciler.hint_seconds):
            log.info("hints_sent", shards=sent)

    def _forget_calls(self) -> None:
        with db.transaction(self._database, point="forget_calls") as connection:
            idempotency.forget(connection)

    def _forget_messages(self) -> None:
        with db.transaction(self._database, point="forget_messages") as connection:
            outbox.forget(connection, keep_seconds=self._settings.webhooks.keep_seconds)

    def _forget_breakers(self) -> None:
        with db.transaction(self._database, point="forget_breakers") as connection:
            breakers.forget(connection, keep_seconds=self._settings.retention.model_memory_seconds)

    def _sweep_files(self) -> None:
        swept = 0
        while swept < FILES_A_SWEEP and not self._stopping.is_set() and self._sweep_file():
            swept += 1
        if swept:
            log.info("files_swept", files=swept)

    def _sweep_file(self) -> bool:
        seconds = self._settings.retention.unfinished_upload_seconds
        with db.transaction(self._database, point="sweep_file") as connection:
            return retention.sweep_file(connection, unfinished_seconds=seconds)
