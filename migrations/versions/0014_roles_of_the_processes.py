"""A role for each kind of process, with no more than it needs: a worker that is taken over reads no key.

The roles cannot log in; users that can are made members of them (docs/security.md). As `promptmill_tenant`, they are of
the whole cluster and are not dropped. Policies of 0009 are for what is done in a caller's name; these roles work for
all projects, and COPY knows no policies, so that their users need BYPASSRLS.

A later migration that makes a table says here, in a GRANT of its own, who may do what with it.
"""

from alembic import op

revision = "0014"
down_revision = "0013"

TENANT = "promptmill_tenant"
# What each does in its own name. Everything that the API does for a caller it does as the tenant.
GRANTS = {
    "promptmill_api": {
        "projects": "SELECT",
        "api_keys": "SELECT",
        "call_budgets": "SELECT, INSERT, UPDATE",
        # An upload while it is sent.
        "files": "SELECT, INSERT, UPDATE, DELETE",
        "lines": "SELECT, INSERT, DELETE",
        # Which shards are announced.
        "batches": "SELECT",
        "shards": "SELECT, UPDATE (hinted_at)",
    },
    "promptmill_worker": {
        "workers": "SELECT, INSERT, UPDATE",
        "lines": "SELECT",
        "requests": "SELECT",
        "results": "SELECT, INSERT",
        "batches": "SELECT, UPDATE",
        # Suspects become shards of their own.
        "shards": "SELECT, INSERT, UPDATE",
        "attempts": "SELECT, INSERT, UPDATE",
        "breakers": "SELECT, INSERT, UPDATE, DELETE",
        "min_worker_version": "SELECT",
        "turns": "SELECT, INSERT, UPDATE",
        # The result files of a batch that ends, and the messages about it. UPDATE is for locks.
        "files": "SELECT, INSERT",
        "webhook_endpoints": "SELECT (id, project_id, event_types, disabled_at), UPDATE (free_at)",
        "webhook_deliveries": "INSERT",
    },
    "promptmill_reconciler": {
        # Who was seen after its lease had ended.
        "workers": "SELECT",
        "lines": "SELECT, DELETE",
        "requests": "SELECT",
        "results": "SELECT, INSERT, DELETE",
        "batches": "SELECT, UPDATE",
        "shards": "SELECT, INSERT, UPDATE",
        "attempts": "SELECT, INSERT, UPDATE",
        "files": "SELECT, INSERT, UPDATE",
        "uploads": "SELECT",
        "calls": "SELECT, DELETE",
        "webhook_endpoints": "SELECT, UPDATE",
        "webhook_deliveries": "SELECT, INSERT, UPDATE, DELETE",
    },
}
# Only while a caller's project is set, and with what the tenant may do, not beside it. The worker looks up images.
CALLERS = ("promptmill_api", "promptmill_worker")


def upgrade() -> None:
    for role, tables in GRANTS.items():
        op.execute(
            f"""
            DO $$ BEGIN
                -- Whoever may not make roles can have them made beforehand.
                IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{role}') THEN
                    CREATE ROLE {role} NOLOGIN;
                END IF;
            EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
            END $$
            """
        )
        op.execute(f"GRANT USAGE ON SCHEMA public TO {role}")
        for table, privileges in tables.items():
            op.execute(f"GRANT {privileges} ON {table} TO {role}")
    for role in CALLERS:
        op.execute(
            f"""
            DO $$ BEGIN
                IF NOT pg_has_role('{role}', '{TENANT}', 'MEMBER') THEN
                    GRANT {TENANT} TO {role} WITH INHERIT FALSE, SET TRUE;
                END IF;
            END $$
            """
        )


def downgrade() -> None:
    for role, tables in GRANTS.items():
        for table in tables:
            op.execute(f"REVOKE ALL ON {table} FROM {role}")
        op.execute(f"REVOKE USAGE ON SCHEMA public FROM {role}")
