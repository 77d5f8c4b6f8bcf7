"""Calls that may be repeated without making a second object.

A client that got no answer repeats its call: by hand with the same Idempotency-Key, or, as the SDK does by itself, with
a retry count and nothing else. What the first call made is looked up here.
"""

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.execute(
        """
        CREATE TABLE calls (
            project_id text COLLATE "C" NOT NULL CONSTRAINT calls_project_id_fkey REFERENCES projects,
            key text COLLATE "C" NOT NULL,
            fingerprint bytea NOT NULL,
            object_id text COLLATE "C" NOT NULL,
            created_at timestamptz NOT NULL DEFAULT app_now(),
            CONSTRAINT calls_pkey PRIMARY KEY (project_id, key)
        );
        CREATE INDEX calls_are_forgotten ON calls (created_at);
        CREATE INDEX calls_of_an_object ON calls (object_id)
        """
    )


def downgrade() -> None:
    op.execute("DROP TABLE calls")
