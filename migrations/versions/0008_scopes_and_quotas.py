"""What a key may do and for how long, and how much a project may have."""

from alembic import op

revision = "0008"
down_revision = "0006"


def upgrade() -> None:
    op.execute(
        """
        ALTER TABLE api_keys ADD COLUMN scopes text[] NOT NULL DEFAULT '{*}', ADD COLUMN expires_at timestamptz;
        ALTER TABLE projects
            ADD COLUMN max_files bigint, ADD COLUMN max_bytes bigint,
            ADD COLUMN max_open_batches bigint, ADD COLUMN max_open_requests bigint,
            ADD COLUMN max_enqueued_tokens bigint, ADD COLUMN calls_per_minute bigint;
        ALTER TABLE batches ADD COLUMN enqueued_tokens bigint NOT NULL DEFAULT 0;
        -- Unlogged: a crash forgives what was spent, and no call waits for the disk.
        CREATE UNLOGGED TABLE call_budgets (
            project_id text COLLATE "C" NOT NULL CONSTRAINT call_budgets_pkey PRIMARY KEY,
            calls double precision NOT NULL,
            refilled_at timestamptz NOT NULL DEFAULT app_now()
        )
        """
    )


def downgrade() -> None:
    op.execute(
        """
        DROP TABLE call_budgets;
        ALTER TABLE batches DROP COLUMN enqueued_tokens;
        ALTER TABLE projects
            DROP COLUMN max_files, DROP COLUMN max_bytes, DROP COLUMN max_open_batches, DROP COLUMN max_open_requests,
            DROP COLUMN max_enqueued_tokens, DROP COLUMN calls_per_minute;
        ALTER TABLE api_keys DROP COLUMN scopes, DROP COLUMN expires_at
        """
    )
