"""A rotation is noted too where nothing was shown of the secret before: a release that did not seal made the endpoint.

Sealing fills in what is shown. It leaves `updated_at` alone, which every change by a caller moves, so it is not noted.
"""

from alembic import op

revision = "0018"
down_revision = "0017"

TRIGGER = """
CREATE OR REPLACE TRIGGER note_webhook_rotated AFTER UPDATE OF secret_hint ON webhook_endpoints
FOR EACH ROW WHEN ({}) EXECUTE FUNCTION note_deed('webhook.rotated')
"""


def upgrade() -> None:
    changed = "OLD.secret_hint IS DISTINCT FROM NEW.secret_hint AND OLD.updated_at <> NEW.updated_at"
    op.execute(TRIGGER.format(changed))


def downgrade() -> None:
    op.execute(TRIGGER.format("OLD.secret_hint <> NEW.secret_hint"))
