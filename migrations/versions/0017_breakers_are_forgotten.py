"""The reconciler forgets breakers of hosts that are gone."""

from alembic import op

revision = "0017"
down_revision = "0016"


def upgrade() -> None:
    op.execute("GRANT DELETE ON breakers TO promptmill_reconciler")


def downgrade() -> None:
    op.execute("REVOKE DELETE ON breakers FROM promptmill_reconciler")
