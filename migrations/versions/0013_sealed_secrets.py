"""What is shown of a webhook's secret gets a column of its own: the secret itself is sealed from now on.

Those that are there stay as they are until `promptmill webhooks seal` is run: the key is not in the database.
"""

from alembic import op

revision = "0013"
down_revision = "0010"


def upgrade() -> None:
    op.execute(
        """
        ALTER TABLE webhook_endpoints ADD COLUMN secret_hint text;
        UPDATE webhook_endpoints SET secret_hint = 'whsec_...' || right(secret, 5)
        """
    )


def downgrade() -> None:
    op.execute(
        """
        DO $$ BEGIN
            IF EXISTS (SELECT FROM webhook_endpoints WHERE secret NOT LIKE 'whsec\\_%') THEN
                RAISE EXCEPTION 'secrets of webhooks are sealed: delete those endpoints first';
            END IF;
        END $$;
        ALTER TABLE webhook_endpoints DROP COLUMN secret_hint
        """
    )
