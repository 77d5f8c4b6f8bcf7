"""Whose shard is next: projects take turns, and a batch may be given a priority within its project."""

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.execute(
        """
        ALTER TABLE batches ADD COLUMN priority smallint NOT NULL DEFAULT 0;
        ALTER TABLE shards ADD COLUMN priority smallint NOT NULL DEFAULT 0;
        CREATE TABLE turns (
            project_id text COLLATE "C" NOT NULL CONSTRAINT turns_pkey PRIMARY KEY
                CONSTRAINT turns_project_id_fkey REFERENCES projects,
            claimed_at timestamptz NOT NULL DEFAULT app_now()
        );
        DROP INDEX queued_shards_are_claimed_in_order;
        CREATE INDEX queued_shards_are_claimed_in_order
            ON shards (model, project_id, priority DESC, created_at, number) WHERE state = 'queued';
        """
    )


def downgrade() -> None:
    op.execute(
        """
        DROP INDEX queued_shards_are_claimed_in_order;
        CREATE INDEX queued_shards_are_claimed_in_order ON shards (model, created_at, number) WHERE state = 'queued';
        DROP TABLE turns;
        ALTER TABLE shards DROP COLUMN priority;
        ALTER TABLE batches DROP COLUMN priority
        """
    )
