"""`promptmill worker`: a Celery worker around one engine."""

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

from celery import Celery, Task, bootsteps
from celery.concurrency.thread import TaskPool
from celery.signals import worker_shutting_down
from celery.worker import state
from celery.worker.consumer import Events, Tasks

from jobs import dispatch, metrics, metrics_port, telemetry
from jobs.errors import PromptmillError
from jobs.settings import Settings
from workers import worker_metrics
from workers.hints import Refusals
from workers.runtime import Runtime
from workers.window import ShardRun

log = telemetry.get_logger(__name__)

KEEP_SIGNAL_SECONDS = 0.2
# How often Flower hears of each shard: as often as Celery says that the worker is there.
PROGRESS_SECONDS = 2.0


def run(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT, then drain. Return the exit status.

    Raises:
        ConfigurationError: the engine cannot be started, Redis would lose hints, or this version is too old.
        Unavailable: Postgres is away.
    """
    dispatch.require_noeviction(settings)
    runtime = Runtime(settings)
    metrics.REGISTRY.register(metrics.Reading(lambda: worker_metrics.families(runtime.moment())))
    metrics_port.serve("worker", settings.metrics, settings.metrics.worker_port)
    _on_signals(_exit)
    runtime.start()
    _on_signals(_again_later)
    celery = dispatch.make_celery(settings)
    _add_task(celery, runtime)
    celery.steps["consumer"].update((_consume_with_room(runtime), _take_hints_only(), _tell_progress(runtime)))
    worker_shutting_down.connect(lambda **_: runtime.drain(), weak=False)
    poller = threading.Thread(target=runtime.poll, name="poller", daemon=True)
    poller.start()
    try:
        return _serve(celery, runtime, settings.worker.max_shards)
    finally:
        # Another Ctrl-C makes Celery leave as it is.
        runtime.drain()
        poller.join()
        runtime.stop()


def _on_signals(handler: Callable[[int, object], None]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handler)


def _exit(_number: int, _frame: object) -> None:
    """Nothing has been claimed yet."""
    sys.exit(0)


def _again_later(number: int, _frame: object) -> None:
    """Celery takes the signals over when it starts; one that comes earlier is kept until then."""
    threading.Timer(KEEP_SIGNAL_SECONDS, os.kill, (os.getpid(), number)).start()


def _add_task(celery: Celery, runtime: Runtime) -> None:
    @celery.task(name=dispatch.RUN_SHARD, bind=True)
    def run_shard(self: Task[Any, Any], shard_id: str) -> dict[str, Any]:
        try:
            return runtime.run_shard(shard_id, str(self.request.id))
        except Exception as error:
            log.exception("shard_failed", shard_id=shard_id, error=type(error).__name__)
            # Celery and Flower show the words of what a task raises; a driver's may quote rows.
            raise PromptmillError(type(error).__name__) from None


def _pool(runtime: Runtime) -> type[TaskPool]:
    """Drain before Celery waits for its threads, however it came to that.

    It tells of a shutdown in a signal handler, and not always: at SIGQUIT it first tries what a pool of threads cannot
    do, and a second Ctrl-C interrupts the handler of the first.
    """

    class DrainedPool(TaskPool):
        def on_stop(self) -> None:
            runtime.drain()
            super().on_stop()

    return DrainedPool


def _consume_with_room(runtime: Runtime) -> type[bootsteps.StartStopStep]:
    """Leave hints to other workers as long as this one has no room, the way Celery's `worker_disable_prefetch` does."""

    class ConsumeWithRoom(bootsteps.StartStopStep):
        requires = (Tasks,)

        def start(self, parent: Any) -> None:  # noqa: ANN401
            qos = parent.task_consumer.channel.qos
            may_consume = qos.can_consume
            qos.can_consume = lambda: runtime.may_hear(len(state.reserved_requests)) and may_consume()

    return ConsumeWithRoom


def _take_hints_only() -> type[bootsteps.StartStopStep]:
    """Keep from Celery what is no hint, on every connection anew."""
    refusals = Refusals()

    class TakeHintsOnly(bootsteps.StartStopStep):
        requires = (Tasks,)

        def start(self, parent: Any) -> None:  # noqa: ANN401
            refusals.guard(parent.task_consumer.channel)

    return TakeHintsOnly


def _tell_progress(runtime: Runtime) -> type[bootsteps.StartStopStep]:
    """Tell Flower how far shards are, from where Celery tells that the worker is there: no shard waits for Redis."""

    class TellProgress(bootsteps.StartStopStep):
        requires = (Events,)
        repeating: Any = None

        def start(self, parent: Any) -> None:  # noqa: ANN401
            self.repeating = parent.timer.call_repeatedly(PROGRESS_SECONDS, self._tell, (parent,))

        def stop(self, _parent: Any) -> None:  # noqa: ANN401
            self.repeating = self.repeating and self.repeating.cancel()

        def _tell(self, parent: Any) -> None:  # noqa: ANN401
            for task_id, run in runtime.under_way().items():
                # Celery knows no such event, so Flower shows its name as the task's state.
                parent.event_dispatcher.send("task-progress", uuid=task_id, **_shown(run))

    return TellProgress


def _shown(run: ShardRun) -> dict[str, str]:
    """Say in Flower's fields what runs and how far it is. The shard need not be the one that the hint named."""
    lease = run.lease
    return {
        "args": f"({lease.remaining} rows, attempt {lease.token}, {lease.batch_id}, {lease.shard_id}, "
        f"lines {lease.first_line}-{lease.last_line})",
        "result": f"{run.written} of {lease.remaining} rows",
    }


def _serve(celery: Celery, runtime: Runtime, threads: int) -> int:
    """Run Celery's consumer in this thread: a thread for each shard, a queue for each model."""
    queues = [dispatch.queue_for(model) for model in runtime.models]
    celery.conf.task_queues = queues
    worker = celery.Worker(
        hostname=f"{runtime.worker_id}@{socket.gethostname()}",
        pool=_pool(runtime),
        concurrency=threads,
        queues=[queue.name for queue in queues],
        task_events=True,
        loglevel="INFO",
        without_gossip=True,
        without_mingle=True,
        quiet=True,
    )
    worker.start()
    return int(worker.exitcode or 0)
