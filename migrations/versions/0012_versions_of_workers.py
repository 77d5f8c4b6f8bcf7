"""Which release a worker must be of at least, and what exactly a worker runs.

A release that a later migration leaves behind is told so here first: its workers drain by themselves. Workers of the
release before this one do not look; they must be gone before the first minimum means anything.
"""

from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    op.execute(
        """
        CREATE TABLE min_worker_version (
            only_row boolean NOT NULL DEFAULT true CONSTRAINT min_worker_version_pkey PRIMARY KEY,
            version text NOT NULL,
            changed_at timestamptz NOT NULL DEFAULT app_now(),
            CONSTRAINT there_is_one_minimum CHECK (only_row)
        );
        ALTER TABLE workers ADD COLUMN revision text
        """
    )


def downgrade() -> None:
    op.execute("DROP TABLE min_worker_version; ALTER TABLE workers DROP COLUMN revision")
