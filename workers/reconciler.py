"""The reconciler: takes back what died, repeats what got lost, ends what is over. Any number may run; one works."""

import signal
import threading
from collections.abc import Callable

from sqlalchemy import text

from jobs import db, dispatch, leases, lifecycle, telemetry
from jobs.errors import Unavailable
from jobs.settings import Settings

log = telemetry.get_logger(__name__)

# Any constant will do, as long as nothing else locks on it.
LOCK = 0x7265636F  # "reco"


class Reconciler:
    """A sweep is a row of idempotent steps, each in transactions of its own; one that fails stops no other."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._database = db.make_engine(settings.database_url.get_secret_value(), connections=2)
        self._dispatcher = dispatch.Dispatcher(self._database, settings)
        self._stopping = threading.Event()

    def run(self) -> None:
        """Sweep until SIGTERM or SIGINT."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stopping.set())
        log.info("reconciler_ready")
        while not self._stopping.is_set():
            try:
                self.sweep()
            except Unavailable as error:
                log.warning("sweep_failed", error=type(error.__cause__).__name__)
            self._stopping.wait(self._settings.reconciler.sweep_seconds)

    def sweep(self) -> bool:
        """Do everything that is due, unless another reconciler is at it; return whether this one was."""
        with db.transaction(self._database) as connection:
            if not connection.execute(text("SELECT pg_try_advisory_xact_lock(:key)"), {"key": LOCK}).scalar_one():
                return False
            for step in (self._recover, self._settle, self._hint, self._sweep_files):
                self._attempt(step)
        return True

    def _attempt(self, step: Callable[[], None]) -> None:
        try:
            step()
        except Exception as error:  # noqa: BLE001  Redis away, say; the next sweep tries again
            log.warning("step_failed", step=step.__name__.strip("_"), error=type(error).__name__)

    def _recover(self) -> None:
        with db.transaction(self._database) as connection:
            recovered = leases.recover(connection)
        if recovered:
            log.warning("leases_ended", shards=recovered)

    def _settle(self) -> None:
        with db.transaction(self._database) as connection:
            due = lifecycle.to_settle(connection)
        for batch_id in due:
            try:
                self._settle_one(batch_id)
            except Exception as error:  # noqa: BLE001  one batch that cannot be ended holds up no other
                log.warning("settle_failed", batch_id=batch_id, error=type(error).__name__)

    def _settle_one(self, batch_id: str) -> None:
        with db.transaction(self._database) as connection:
            status = lifecycle.settle(connection, batch_id, self._settings.retention)
        if status:
            log.info("batch_ended", batch_id=batch_id, status=str(status))

    def _hint(self) -> None:
        if sent := self._dispatcher.hint_overdue(self._settings.reconciler.hint_seconds):
            log.info("hints_sent", shards=sent)

    def _sweep_files(self) -> None:
        seconds = self._settings.retention.unfinished_upload_seconds
        with db.transaction(self._database) as connection:
            if swept := lifecycle.sweep_files(connection, unfinished_seconds=seconds):
                log.info("files_swept", files=swept)
