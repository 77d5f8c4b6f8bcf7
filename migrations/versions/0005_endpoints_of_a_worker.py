"""The endpoints at which a worker serves its models.

Until here every worker served chat and completions, and nothing else. That is the default, so that workers of the
release before this one go on registering.
"""

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.execute(
        """
        ALTER TABLE workers
            ADD COLUMN endpoints text[] NOT NULL DEFAULT '{/v1/chat/completions,/v1/completions}'
        """
    )


def downgrade() -> None:
    op.execute("ALTER TABLE workers DROP COLUMN endpoints")
