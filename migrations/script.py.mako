"""${message}

The code that runs today must also run on the new schema: add, deploy, backfill, and only one release later remove.
A header says why, an index on a big table is built CONCURRENTLY in an autocommit block.
"""

from alembic import op

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}


def upgrade() -> None:
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    ${downgrades if downgrades else "pass"}
