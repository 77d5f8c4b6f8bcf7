"""A batch may name several models: each line, request and shard says which of its file's.

Lines that are there, and those that a process of an earlier release still writes, have no number: a file of one model
needs none, and one of several models is refused as before. Old requests and shards are of batches with one model.
"""

from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.execute(
        """
        ALTER TABLE lines ADD COLUMN model_no smallint;
        ALTER TABLE requests ADD COLUMN model_no smallint NOT NULL DEFAULT 0;
        ALTER TABLE shards ADD COLUMN model_no smallint NOT NULL DEFAULT 0
        """
    )


def downgrade() -> None:
    op.execute(
        """
        DO $$ BEGIN
            -- Without the numbers, the shards of such a batch would run each other's requests.
            IF EXISTS (SELECT FROM shards WHERE model_no > 0 AND state <> 'done') THEN
                RAISE EXCEPTION 'batches that mix models run: cancel them, or wait for their end';
            END IF;
        END $$;
        ALTER TABLE lines DROP COLUMN model_no;
        ALTER TABLE requests DROP COLUMN model_no;
        ALTER TABLE shards DROP COLUMN model_no
        """
    )
