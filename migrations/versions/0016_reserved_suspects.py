"""Which busy worker a suspect waits for, so that no other stops claiming for the same one.

A worker of an earlier release knows no reservations: it stops claiming for a suspect as before.
"""

from alembic import op

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    op.execute("ALTER TABLE shards ADD COLUMN reserved_by text, ADD COLUMN reserved_until timestamptz")


def downgrade() -> None:
    op.execute("ALTER TABLE shards DROP COLUMN reserved_by, DROP COLUMN reserved_until")
