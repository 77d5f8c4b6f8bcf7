"""Which shards workers may not have heard of."""

from collections import defaultdict
from dataclasses import dataclass, field

from sqlalchemy import Connection, text

_TO_HINT = text(
    """
    SELECT s.id, s.model, s.hinted_at IS NULL AS is_new FROM shards s JOIN batches b ON b.id = s.batch_id
    WHERE s.state = 'queued' AND b.status = 'in_progress'
      AND (s.hinted_at IS NULL
           -- Also from a time that has not come yet: the clock was set back.
           OR s.hinted_at NOT BETWEEN app_now() - make_interval(secs => :hint_seconds) AND app_now())
    ORDER BY s.created_at, s.number LIMIT 10000
    """
)


@dataclass
class Unhinted:
    """Queued shards of one model that workers may not know of, oldest first."""

    new: list[str] = field(default_factory=list)
    """No hint was ever sent."""
    overdue: list[str] = field(default_factory=list)
    """The hint went out so long ago that it may be lost."""


def to_hint(connection: Connection, *, hint_seconds: float) -> dict[str, Unhinted]:
    """Return, by model, the shards that are to be announced, or to be announced again."""
    found: dict[str, Unhinted] = defaultdict(Unhinted)
    for row in connection.execute(_TO_HINT, {"hint_seconds": hint_seconds}):
        (found[row.model].new if row.is_new else found[row.model].overdue).append(row.id)
    return found
