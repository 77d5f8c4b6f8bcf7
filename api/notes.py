"""What operators are told of calls and of new batches: a line in the log, figures, spans."""

from starlette.types import Scope

from api import metrics
from jobs import ids, telemetry, tracing
from jobs.metrics import count_batch
from jobs.states import BatchStatus

log = telemetry.get_logger(__name__)


def note_call(call_id: str, scope: Scope, status: int, seconds: float) -> None:
    """Tell of a call that is over; `status` 0: its client left before there was an answer."""
    # The route's pattern, not the path: a path may hold anything a client likes to write.
    route = getattr(scope.get("route"), "path", None)
    method = metrics.bounded(scope["method"])
    named = {name: value for name, value in scope.get("path_params", {}).items() if ids.is_id(value)}
    log.info("call", method=method, route=route, status=status, ms=round(seconds * 1000, 1), **named)
    metrics.count_call(method, route, status, seconds)
    tracing.note_call(call_id, seconds, method=method, route=route or "none", status=status)


def note_created(batch_id: str, status: str, seconds: float) -> None:
    """Tell of a batch that was created just now."""
    log.info("batch_created", batch_id=batch_id, status=status)
    tracing.note_created(batch_id, seconds, status=status)
    if status == BatchStatus.FAILED:
        count_batch(status, {})
