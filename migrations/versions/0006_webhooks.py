"""Webhooks: who is told that a batch has ended, and the messages that are still to be sent.

The messages are an outbox: they are written in the transaction that ends the batch, and sent afterwards.
"""

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.execute(
        """
        CREATE TABLE webhook_endpoints (
            id text COLLATE "C" NOT NULL CONSTRAINT webhook_endpoints_pkey PRIMARY KEY,
            project_id text COLLATE "C" NOT NULL CONSTRAINT webhook_endpoints_project_id_fkey REFERENCES projects,
            name text NOT NULL,
            url text NOT NULL,
            event_types text[] NOT NULL,
            secret text NOT NULL,
            previous_secret text,
            previous_secret_until timestamptz,
            created_at timestamptz NOT NULL DEFAULT app_now(),
            updated_at timestamptz NOT NULL DEFAULT app_now(),
            disabled_at timestamptz,
            free_at timestamptz NOT NULL DEFAULT app_now(),
            CONSTRAINT webhook_endpoints_belong_to_one_project UNIQUE (project_id, id)
        );

        CREATE TABLE webhook_deliveries (
            id text COLLATE "C" NOT NULL CONSTRAINT webhook_deliveries_pkey PRIMARY KEY,
            project_id text COLLATE "C" NOT NULL,
            endpoint_id text COLLATE "C" NOT NULL,
            batch_id text COLLATE "C" NOT NULL,
            type text NOT NULL,
            created_at timestamptz NOT NULL DEFAULT app_now(),
            next_at timestamptz,
            attempts integer NOT NULL DEFAULT 0,
            attempted_at timestamptz,
            last_status integer,
            last_error text,
            delivered_at timestamptz,
            given_up_at timestamptz,
            CONSTRAINT webhook_deliveries_go_to_endpoints_of_their_project
                FOREIGN KEY (project_id, endpoint_id) REFERENCES webhook_endpoints (project_id, id) ON DELETE CASCADE,
            CONSTRAINT webhook_deliveries_tell_of_batches_of_their_project
                FOREIGN KEY (project_id, batch_id) REFERENCES batches (project_id, id),
            CONSTRAINT webhook_delivery_waits_or_came_or_was_given_up
                CHECK (num_nonnulls(next_at, delivered_at, given_up_at) = 1)
        );
        CREATE INDEX webhook_deliveries_that_wait ON webhook_deliveries (endpoint_id, next_at)
            WHERE next_at IS NOT NULL;
        CREATE INDEX webhook_deliveries_are_listed_newest_first ON webhook_deliveries (endpoint_id, created_at, id);
        CREATE INDEX webhook_deliveries_are_forgotten ON webhook_deliveries (created_at)
        """
    )


def downgrade() -> None:
    op.execute("DROP TABLE webhook_deliveries, webhook_endpoints")
