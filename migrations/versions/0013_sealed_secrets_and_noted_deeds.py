"""Secrets of webhooks are sealed, and deeds are noted where nobody can change them.

What is shown of a secret gets a column of its own. Secrets that are there stay as they are until `promptmill webhooks
seal` is run: the key is not in the database.

Deeds are noted by triggers, so that no way around them exists, not even for an operator with psql; they work as the
owner, so that whoever does a deed need not be able to write, let alone change, what is noted about it.
"""

from alembic import op

revision = "0013"
down_revision = "0012"

AUDIT_LOG = """
CREATE TABLE audit_log (
    id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT audit_log_pkey PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT app_now(),
    actor text NOT NULL,
    action text NOT NULL,
    project_id text COLLATE "C" NOT NULL,
    object_id text COLLATE "C" NOT NULL
);
CREATE INDEX audit_log_of_a_project ON audit_log (project_id, id);

CREATE FUNCTION audit_log_only_grows() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the audit log only grows' USING ERRCODE = 'check_violation';
END $$;
CREATE TRIGGER audit_log_never_changes BEFORE UPDATE OR DELETE ON audit_log
    FOR EACH ROW EXECUTE FUNCTION audit_log_only_grows();
CREATE TRIGGER audit_log_is_never_emptied BEFORE TRUNCATE ON audit_log
    FOR EACH STATEMENT EXECUTE FUNCTION audit_log_only_grows();

-- Its argument is the deed, the row is what it was done to. `promptmill.key` is set by jobs.db.transaction.
CREATE FUNCTION note_deed() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    object jsonb := to_jsonb(CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END);
BEGIN
    INSERT INTO audit_log (actor, action, project_id, object_id) VALUES (
        coalesce('key ' || nullif(current_setting('promptmill.key', true), ''), 'user ' || session_user),
        TG_ARGV[0],
        coalesce(object ->> 'project_id', object ->> 'id'),
        object ->> 'id');
    RETURN NULL;
END $$
"""
# The deed, the table and what happens to it.
DEEDS = {
    "project.created": ("projects", "INSERT", "true"),
    "project.limited": (
        "projects",
        "UPDATE OF max_files, max_bytes, max_open_batches, max_open_requests, max_enqueued_tokens, calls_per_minute",
        "OLD.* IS DISTINCT FROM NEW.*",
    ),
    "key.created": ("api_keys", "INSERT", "true"),
    "key.revoked": ("api_keys", "UPDATE OF revoked_at", "OLD.revoked_at IS NULL AND NEW.revoked_at IS NOT NULL"),
    "file.deleted": ("files", "UPDATE OF deleted_at", "OLD.deleted_at IS NULL AND NEW.deleted_at IS NOT NULL"),
    "upload.cancelled": ("uploads", "UPDATE OF status", "OLD.status <> 'cancelled' AND NEW.status = 'cancelled'"),
    "batch.cancelled": ("batches", "UPDATE OF status", "OLD.status <> 'cancelling' AND NEW.status = 'cancelling'"),
    "webhook.created": ("webhook_endpoints", "INSERT", "true"),
    "webhook.redirected": ("webhook_endpoints", "UPDATE OF url", "OLD.url <> NEW.url"),
    # Not `secret`: that changes when it is sealed with another key, too.
    "webhook.rotated": ("webhook_endpoints", "UPDATE OF secret_hint", "OLD.secret_hint <> NEW.secret_hint"),
    "webhook.deleted": ("webhook_endpoints", "DELETE", "true"),
}


def upgrade() -> None:
    op.execute(
        """
        ALTER TABLE webhook_endpoints ADD COLUMN secret_hint text;
        UPDATE webhook_endpoints SET secret_hint = 'whsec_...' || right(secret, 5)
        """
    )
    op.execute(AUDIT_LOG)
    for deed, (table, event, condition) in DEEDS.items():
        name = f"note_{deed.replace('.', '_')}"
        op.execute(
            f"CREATE TRIGGER {name} AFTER {event} ON {table} FOR EACH ROW WHEN ({condition}) "
            f"EXECUTE FUNCTION note_deed('{deed}')"
        )


def downgrade() -> None:
    op.execute(
        """
        DO $$ BEGIN
            IF EXISTS (SELECT FROM webhook_endpoints WHERE secret NOT LIKE 'whsec\\_%') THEN
                RAISE EXCEPTION 'secrets of webhooks are sealed: delete those endpoints first';
            END IF;
        END $$;
        DROP FUNCTION note_deed CASCADE;
        DROP TABLE audit_log;
        DROP FUNCTION audit_log_only_grows;
        ALTER TABLE webhook_endpoints DROP COLUMN secret_hint
        """
    )
