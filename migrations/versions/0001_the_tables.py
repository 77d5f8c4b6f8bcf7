"""The tables, and the rules that no code path may leave.

Legal transitions, final results and growing lease tokens are triggers: a bug in the code, or a hand in psql,
gets an error instead of a lost or doubled result.
"""

from alembic import op

revision = "0001"
down_revision = None

CLOCK = """
-- The one clock. Tests shift it: ALTER DATABASE ... SET promptmill.clock_offset = '1 hour'.
CREATE FUNCTION app_now() RETURNS timestamptz LANGUAGE sql STABLE AS $$
    SELECT statement_timestamp() + coalesce(nullif(current_setting('promptmill.clock_offset', true), ''), '0')::interval
$$
"""

TABLES = """
CREATE TABLE projects (
    id text COLLATE "C" NOT NULL CONSTRAINT projects_pkey PRIMARY KEY,
    name text NOT NULL CONSTRAINT project_names_are_unique UNIQUE,
    created_at timestamptz NOT NULL DEFAULT app_now()
);

CREATE TABLE api_keys (
    id text COLLATE "C" NOT NULL CONSTRAINT api_keys_pkey PRIMARY KEY,
    project_id text COLLATE "C" NOT NULL CONSTRAINT api_keys_project_id_fkey REFERENCES projects,
    name text NOT NULL,
    secret_hash bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT app_now(),
    revoked_at timestamptz
);

CREATE TABLE files (
    id text COLLATE "C" NOT NULL CONSTRAINT files_pkey PRIMARY KEY,
    project_id text COLLATE "C" NOT NULL CONSTRAINT files_project_id_fkey REFERENCES projects,
    purpose text NOT NULL,
    filename text NOT NULL,
    status text NOT NULL,
    bytes bigint NOT NULL DEFAULT 0,
    sha256 bytea,
    requests integer NOT NULL DEFAULT 0,
    urls text[] NOT NULL DEFAULT '{}',
    models text[] NOT NULL DEFAULT '{}',
    problems json,
    batch_id text COLLATE "C",
    created_at timestamptz NOT NULL DEFAULT app_now(),
    expires_at timestamptz,
    deleted_at timestamptz,
    swept_at timestamptz,
    CONSTRAINT files_belong_to_one_project UNIQUE (project_id, id),
    CONSTRAINT file_status_is_known CHECK (status IN ('uploading', 'processed'))
);
CREATE INDEX files_are_listed_newest_first ON files (project_id, created_at, id);
CREATE INDEX files_that_may_be_swept ON files (id)
    WHERE swept_at IS NULL AND (deleted_at IS NOT NULL OR expires_at IS NOT NULL OR status = 'uploading');

CREATE TABLE lines (
    file_id text COLLATE "C" NOT NULL,
    line_no integer NOT NULL,
    custom_id text COLLATE "C",
    content bytea NOT NULL,
    CONSTRAINT lines_pkey PRIMARY KEY (file_id, line_no)
);

CREATE TABLE batches (
    id text COLLATE "C" NOT NULL CONSTRAINT batches_pkey PRIMARY KEY,
    project_id text COLLATE "C" NOT NULL CONSTRAINT batches_project_id_fkey REFERENCES projects,
    input_file_id text NOT NULL,
    source_file_id text COLLATE "C",
    endpoint text NOT NULL,
    completion_window text NOT NULL,
    model text,
    status text NOT NULL DEFAULT 'validating',
    metadata json,
    errors json,
    output_expires_after_seconds integer,
    created_at timestamptz NOT NULL DEFAULT app_now(),
    expires_at timestamptz NOT NULL DEFAULT app_now(),
    in_progress_at timestamptz,
    finalizing_at timestamptz,
    completed_at timestamptz,
    failed_at timestamptz,
    expired_at timestamptz,
    cancelling_at timestamptz,
    cancelled_at timestamptz,
    CONSTRAINT batches_read_files_of_their_project
        FOREIGN KEY (project_id, source_file_id) REFERENCES files (project_id, id),
    CONSTRAINT batches_belong_to_one_project UNIQUE (project_id, id),
    CONSTRAINT batch_status_is_known CHECK (status IN
        ('validating', 'failed', 'in_progress', 'finalizing', 'completed', 'expired', 'cancelling', 'cancelled')),
    CONSTRAINT completed_at_means_completed CHECK ((status = 'completed') = (completed_at IS NOT NULL)),
    CONSTRAINT failed_at_means_failed CHECK ((status = 'failed') = (failed_at IS NOT NULL)),
    CONSTRAINT expired_at_means_expired CHECK ((status = 'expired') = (expired_at IS NOT NULL)),
    CONSTRAINT cancelled_at_means_cancelled CHECK ((status = 'cancelled') = (cancelled_at IS NOT NULL))
);
CREATE INDEX batches_are_listed_newest_first ON batches (project_id, created_at, id);
CREATE INDEX batches_that_are_not_over ON batches (status)
    WHERE status IN ('validating', 'in_progress', 'finalizing', 'cancelling');

CREATE TABLE requests (
    batch_id text COLLATE "C" NOT NULL,
    line_no integer NOT NULL,
    custom_id text COLLATE "C" NOT NULL,
    CONSTRAINT requests_pkey PRIMARY KEY (batch_id, line_no)
);
CREATE UNIQUE INDEX custom_ids_are_unique_in_a_batch ON requests (batch_id, custom_id);

CREATE TABLE shards (
    id text COLLATE "C" NOT NULL CONSTRAINT shards_pkey PRIMARY KEY,
    project_id text COLLATE "C" NOT NULL,
    batch_id text COLLATE "C" NOT NULL,
    number integer NOT NULL,
    first_line integer NOT NULL,
    last_line integer NOT NULL,
    model text NOT NULL,
    state text NOT NULL DEFAULT 'queued',
    lease_token bigint NOT NULL DEFAULT 0,
    lease_until timestamptz,
    hinted_at timestamptz,
    total integer NOT NULL,
    completed integer NOT NULL DEFAULT 0,
    failed integer NOT NULL DEFAULT 0,
    input_tokens bigint NOT NULL DEFAULT 0,
    cached_tokens bigint NOT NULL DEFAULT 0,
    output_tokens bigint NOT NULL DEFAULT 0,
    reasoning_tokens bigint NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT app_now(),
    CONSTRAINT shards_belong_to_the_project_of_their_batch
        FOREIGN KEY (project_id, batch_id) REFERENCES batches (project_id, id),
    CONSTRAINT shards_of_a_batch_are_numbered UNIQUE (batch_id, number),
    CONSTRAINT shard_state_is_known CHECK (state IN ('queued', 'running', 'stopped', 'done')),
    CONSTRAINT no_more_outcomes_than_requests CHECK (completed >= 0 AND failed >= 0 AND completed + failed <= total),
    CONSTRAINT done_means_every_request_has_an_outcome CHECK ((state = 'done') = (completed + failed = total)),
    CONSTRAINT running_means_leased CHECK ((state = 'running') = (lease_until IS NOT NULL))
);
CREATE INDEX queued_shards_are_claimed_in_order ON shards (model, created_at, number) WHERE state = 'queued';
CREATE INDEX leases_end ON shards (lease_until) WHERE state = 'running';

CREATE TABLE attempts (
    shard_id text COLLATE "C" NOT NULL CONSTRAINT attempts_shard_id_fkey REFERENCES shards,
    lease_token bigint NOT NULL,
    worker_id text NOT NULL,
    started_at timestamptz NOT NULL DEFAULT app_now(),
    ended_at timestamptz,
    end_reason text,
    CONSTRAINT attempts_pkey PRIMARY KEY (shard_id, lease_token),
    CONSTRAINT an_ended_attempt_has_a_reason CHECK ((ended_at IS NULL) = (end_reason IS NULL))
);

CREATE TABLE results (
    batch_id text COLLATE "C" NOT NULL,
    line_no integer NOT NULL,
    is_error boolean NOT NULL,
    status_code smallint,
    code text,
    lease_token bigint NOT NULL,
    content bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT app_now(),
    CONSTRAINT results_pkey PRIMARY KEY (batch_id, line_no)
);

CREATE TABLE workers (
    id text COLLATE "C" NOT NULL CONSTRAINT workers_pkey PRIMARY KEY,
    hostname text NOT NULL,
    pid integer NOT NULL,
    engine text NOT NULL,
    models text[] NOT NULL,
    version text NOT NULL,
    started_at timestamptz NOT NULL DEFAULT app_now(),
    seen_at timestamptz NOT NULL DEFAULT app_now(),
    stopped_at timestamptz
)
"""

# Lines are stored with lz4. A Postgres built without it (the embedded one) stores them as they are: its own pglz is
# several times as slow (docs/decisions/0002).
STORAGE = """
DO $$
DECLARE bulk text;
BEGIN
    FOREACH bulk IN ARRAY ARRAY['lines', 'results'] LOOP
        IF (SELECT 'lz4' = ANY (enumvals) FROM pg_settings WHERE name = 'default_toast_compression') THEN
            EXECUTE format('ALTER TABLE %I ALTER COLUMN content SET COMPRESSION lz4', bulk);
        ELSE
            EXECUTE format('ALTER TABLE %I ALTER COLUMN content SET STORAGE EXTERNAL', bulk);
        END IF;
    END LOOP;
END $$
"""

RULES = """
CREATE FUNCTION batch_transition_is_legal() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (OLD.status, NEW.status) IN (
        ('validating', 'in_progress'), ('validating', 'failed'), ('validating', 'cancelling'),
        ('in_progress', 'finalizing'), ('in_progress', 'expired'), ('in_progress', 'cancelling'),
        ('finalizing', 'completed'),
        ('cancelling', 'cancelled')
    ) THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'batch %: % -> % is not a legal transition', OLD.id, OLD.status, NEW.status
        USING ERRCODE = 'check_violation';
END $$;
CREATE TRIGGER batch_transitions_are_legal BEFORE UPDATE OF status ON batches
    FOR EACH ROW WHEN (OLD.status IS DISTINCT FROM NEW.status) EXECUTE FUNCTION batch_transition_is_legal();

CREATE FUNCTION shard_transition_is_legal() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.lease_token < OLD.lease_token THEN
        RAISE EXCEPTION 'shard %: a lease token never falls', OLD.id USING ERRCODE = 'check_violation';
    END IF;
    IF OLD.state = NEW.state OR (OLD.state, NEW.state) IN (
        ('queued', 'running'), ('queued', 'stopped'),
        ('running', 'queued'), ('running', 'done'), ('running', 'stopped'),
        ('stopped', 'done')
    ) THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'shard %: % -> % is not a legal transition', OLD.id, OLD.state, NEW.state
        USING ERRCODE = 'check_violation';
END $$;
CREATE TRIGGER shard_transitions_are_legal BEFORE UPDATE OF state, lease_token ON shards
    FOR EACH ROW EXECUTE FUNCTION shard_transition_is_legal();

CREATE FUNCTION results_never_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'result % %: an outcome never changes', OLD.batch_id, OLD.line_no USING ERRCODE = 'check_violation';
END $$;
CREATE TRIGGER results_are_final BEFORE UPDATE ON results
    FOR EACH ROW EXECUTE FUNCTION results_never_change()
"""


def upgrade() -> None:
    op.execute(CLOCK)
    op.execute(TABLES)
    op.execute(STORAGE)
    op.execute(RULES)


def downgrade() -> None:
    op.execute(
        "DROP TABLE workers, results, attempts, shards, requests, batches, lines, files, api_keys, projects CASCADE"
    )
    op.execute("DROP FUNCTION batch_transition_is_legal, shard_transition_is_legal, results_never_change, app_now")
