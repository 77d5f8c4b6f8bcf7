"""What the engine of a worker is busy with, renewed with each heartbeat: for people who look at the list of workers.

Rights on `workers` (0009, 0014) are on the whole table, so they hold for this column: workers write it, and the
reconciler and calls of the API read it. The reconciler reads `breakers` too: it shows them as figures (`jobs.census`).
"""

from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    op.execute("ALTER TABLE workers ADD COLUMN load jsonb")
    op.execute("GRANT SELECT ON breakers TO promptmill_reconciler")


def downgrade() -> None:
    op.execute("REVOKE SELECT ON breakers FROM promptmill_reconciler")
    op.execute("ALTER TABLE workers DROP COLUMN load")
