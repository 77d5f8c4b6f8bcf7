"""Files that are sent in parts.

A part is a row of `files` that never becomes visible: its bytes are stored, limited and swept as those of any file.
"""

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.execute(
        """
        CREATE TABLE uploads (
            id text COLLATE "C" NOT NULL CONSTRAINT uploads_pkey PRIMARY KEY,
            project_id text COLLATE "C" NOT NULL CONSTRAINT uploads_project_id_fkey REFERENCES projects,
            filename text NOT NULL,
            purpose text NOT NULL,
            bytes bigint NOT NULL,
            expires_after_seconds integer,
            status text NOT NULL DEFAULT 'pending',
            part_ids text[],
            file_id text COLLATE "C",
            created_at timestamptz NOT NULL DEFAULT app_now(),
            expires_at timestamptz NOT NULL DEFAULT app_now(),
            CONSTRAINT uploads_belong_to_one_project UNIQUE (project_id, id),
            CONSTRAINT upload_status_is_known CHECK (status IN ('pending', 'completed', 'cancelled')),
            CONSTRAINT completed_means_there_is_a_file CHECK ((status = 'completed') = (file_id IS NOT NULL))
        );
        ALTER TABLE files
            ADD COLUMN upload_id text COLLATE "C",
            ADD COLUMN sweep_began_at timestamptz,
            ADD CONSTRAINT parts_belong_to_the_project_of_their_upload
                FOREIGN KEY (project_id, upload_id) REFERENCES uploads (project_id, id),
            DROP CONSTRAINT file_status_is_known,
            ADD CONSTRAINT file_status_is_known CHECK (status IN ('uploading', 'part', 'processed')),
            ADD CONSTRAINT parts_have_an_upload CHECK ((status = 'part') = (upload_id IS NOT NULL));
        CREATE INDEX batches_of_a_file ON batches (source_file_id);
        DROP INDEX files_that_may_be_swept;
        CREATE INDEX files_that_may_be_swept ON files (id)
            WHERE swept_at IS NULL
            AND (deleted_at IS NOT NULL OR expires_at IS NOT NULL OR status IN ('uploading', 'part'))
        """
    )


def downgrade() -> None:
    op.execute(
        """
        DELETE FROM lines USING files WHERE lines.file_id = files.id AND files.status = 'part';
        DELETE FROM files WHERE status = 'part';
        DROP INDEX files_that_may_be_swept;
        CREATE INDEX files_that_may_be_swept ON files (id)
            WHERE swept_at IS NULL AND (deleted_at IS NOT NULL OR expires_at IS NOT NULL OR status = 'uploading');
        ALTER TABLE files
            DROP COLUMN upload_id,
            DROP COLUMN sweep_began_at,
            DROP CONSTRAINT file_status_is_known,
            ADD CONSTRAINT file_status_is_known CHECK (status IN ('uploading', 'processed'));
        DROP TABLE uploads;
        DROP INDEX batches_of_a_file
        """
    )
