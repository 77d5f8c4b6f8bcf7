"""The second line between projects: what the API does for a caller, Postgres limits to the caller's rows.

Workers, the reconciler and the check of keys work as the owner of the tables, for whom no policy counts. The role is
of the whole cluster, so several databases may share it, and it is not dropped.
"""

from alembic import op

revision = "0009"
down_revision = "0008"

TENANT = "promptmill_tenant"
MINE = "current_setting('promptmill.project', true)"
# What the API does in a caller's name.
GRANTS = {
    "projects": "SELECT",
    "workers": "SELECT",
    "files": "SELECT, INSERT, UPDATE",
    "lines": "SELECT",
    "uploads": "SELECT, INSERT, UPDATE",
    "batches": "SELECT, INSERT, UPDATE",
    "requests": "SELECT, INSERT",
    "shards": "SELECT, INSERT, UPDATE",
    "results": "SELECT",
    "calls": "SELECT, INSERT, UPDATE, DELETE",
    "webhook_endpoints": "SELECT, INSERT, UPDATE, DELETE",
    "webhook_deliveries": "SELECT, INSERT, UPDATE, DELETE",
}
POLICIES = {
    "projects": f"id = {MINE}",
    "files": f"project_id = {MINE}",
    "uploads": f"project_id = {MINE}",
    "batches": f"project_id = {MINE}",
    "shards": f"project_id = {MINE}",
    "calls": f"project_id = {MINE}",
    "webhook_endpoints": f"project_id = {MINE}",
    "webhook_deliveries": f"project_id = {MINE}",
    # These have no project of their own: their parents' policies decide.
    "lines": "EXISTS (SELECT FROM files f WHERE f.id = file_id)",
    "requests": "EXISTS (SELECT FROM batches b WHERE b.id = batch_id)",
    "results": "EXISTS (SELECT FROM batches b WHERE b.id = batch_id)",
}


def upgrade() -> None:
    op.execute(
        f"""
        DO $$ BEGIN
            -- Whoever may not make roles can have it made beforehand.
            IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{TENANT}') THEN
                CREATE ROLE {TENANT} NOLOGIN;
            END IF;
        EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
        END $$
        """
    )
    op.execute(
        f"""
        DO $$ BEGIN
            IF NOT pg_has_role(CURRENT_USER, '{TENANT}', 'MEMBER') THEN GRANT {TENANT} TO CURRENT_USER; END IF;
        END $$
        """
    )
    op.execute(f"GRANT USAGE ON SCHEMA public TO {TENANT}")
    for table, privileges in GRANTS.items():
        op.execute(f"GRANT {privileges} ON {table} TO {TENANT}")
    for table, condition in POLICIES.items():
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        policy = f"CREATE POLICY only_the_callers_project ON {table} TO {TENANT}"
        op.execute(f"{policy} USING ({condition}) WITH CHECK ({condition})")


def downgrade() -> None:
    for table in POLICIES:
        op.execute(f"DROP POLICY only_the_callers_project ON {table}")
        op.execute(f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY")
    for table in GRANTS:
        op.execute(f"REVOKE ALL ON {table} FROM {TENANT}")
    op.execute(f"REVOKE USAGE ON SCHEMA public FROM {TENANT}")
