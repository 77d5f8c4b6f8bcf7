"""Who was aboard when an engine died: the mark of a lease, shards that are run alone, and engines that wait.

A worker of an earlier release leaves no mark: what it loses goes back into the queue as before, nobody is suspected.
It may also run a suspect beside other rows; no death is charged to the suspect for it.
"""

from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    op.execute(
        """
        ALTER TABLE attempts ADD COLUMN aboard_line integer;
        ALTER TABLE shards ADD COLUMN suspect_since bigint;
        CREATE TABLE breakers (
            hostname text NOT NULL,
            model text NOT NULL,
            failures integer NOT NULL,
            open_until timestamptz,
            failed_at timestamptz NOT NULL DEFAULT app_now(),
            CONSTRAINT breakers_pkey PRIMARY KEY (hostname, model)
        )
        """
    )


def downgrade() -> None:
    op.execute(
        """
        DROP TABLE breakers;
        ALTER TABLE shards DROP COLUMN suspect_since;
        ALTER TABLE attempts DROP COLUMN aboard_line
        """
    )
