"""Reads who did what: the rows that triggers wrote in the transaction of each deed (migration 0013)."""

from dataclasses import dataclass

from sqlalchemy import Connection, select

from jobs.tables import audit_log, projects


@dataclass(frozen=True)
class Deed:
    """One line of the audit log."""

    at: str
    actor: str
    action: str
    project: str
    object_id: str


def latest(connection: Connection, *, project_id: str | None, limit: int) -> list[Deed]:
    """Return the last `limit` deeds, of one project or of all, oldest first."""
    columns = (audit_log.c.at, audit_log.c.actor, audit_log.c.action, audit_log.c.object_id)
    statement = select(*columns, projects.c.name).join(projects, projects.c.id == audit_log.c.project_id)
    if project_id is not None:
        statement = statement.where(audit_log.c.project_id == project_id)
    rows = connection.execute(statement.order_by(audit_log.c.id.desc()).limit(limit)).all()
    return [
        Deed(row.at.isoformat(timespec="seconds"), row.actor, row.action, row.name, row.object_id)
        for row in reversed(rows)
    ]
