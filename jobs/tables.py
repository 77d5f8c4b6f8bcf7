"""The tables, as SQLAlchemy sees them. `migrations/` makes them; a test holds the two together.

    projects ─ api_keys, call_budgets, calls, turns
        ├ uploads ─ files                  a part is a file that nobody sees
        ├ webhook_endpoints ─ webhook_deliveries    one message for each batch that ended
        └ files ─ lines                    a file is its lines, byte for byte
            └ batches ─ requests           one request for each line that is not blank
                  ├ shards ─ attempts      runs of requests; one message, one lease
                  └ results                one outcome for each request, never changed
    audit_log                              who did what
    workers                                who serves which model, at which endpoints
    breakers                               hosts on which engines died with nothing aboard
    min_worker_version                     the oldest release that may claim

Some columns are for people who ask afterwards, no code reads them: when and by which lease a result was written, its
status and code, what a worker was.

The bulk tables (lines, requests, results) have no foreign keys: checking one costs about as much as writing the row.
Their parents are never deleted before them (`jobs.retention`).
"""

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, BYTEA, JSON, JSONB
from sqlalchemy.types import Boolean

from jobs.states import BatchStatus, ShardState

metadata = MetaData(
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "fk": "%(table_name)s_%(column_0_name)s_fkey",
        "ck": "%(constraint_name)s",
    }
)

NOW = text("app_now()")
ZERO = text("0")


def _moment(name: str, *, required: bool = False) -> Column[object]:
    return Column(name, DateTime(timezone=True), nullable=not required, server_default=NOW if required else None)


def _count(name: str, kind: type[Integer] = Integer) -> Column[int]:
    return Column(name, kind, nullable=False, server_default=ZERO)


def _one_of(column: str, values: type[BatchStatus] | type[ShardState]) -> str:
    return f"{column} IN ({', '.join(repr(str(value)) for value in values)})"


projects = Table(
    "projects",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    _moment("created_at", required=True),
    # Its quotas (jobs.quotas); null: the setting's.
    Column("max_files", BigInteger),
    Column("max_bytes", BigInteger),
    Column("max_open_batches", BigInteger),
    Column("max_open_requests", BigInteger),
    Column("max_enqueued_tokens", BigInteger),
    Column("calls_per_minute", BigInteger),
    UniqueConstraint("name", name="project_names_are_unique"),
)

api_keys = Table(
    "api_keys",
    metadata,
    # The public part of the key; the secret part is stored as its SHA-256 only.
    Column("id", Text, primary_key=True),
    Column("project_id", Text, ForeignKey("projects.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("secret_hash", LargeBinary, nullable=False),
    # `jobs.keys.Scope`; * is all of them.
    Column("scopes", ARRAY(Text), nullable=False, server_default=text("'{*}'")),
    _moment("created_at", required=True),
    _moment("expires_at"),
    _moment("revoked_at"),
)

call_budgets = Table(
    "call_budgets",
    metadata,
    # Calls that the project has left, as of `refilled_at`.
    Column("project_id", Text, primary_key=True),
    Column("calls", Double, nullable=False),
    _moment("refilled_at", required=True),
    prefixes=["UNLOGGED"],
)

uploads = Table(
    "uploads",
    metadata,
    Column("id", Text, primary_key=True),
    Column("project_id", Text, ForeignKey("projects.id"), nullable=False),
    Column("filename", Text, nullable=False),
    Column("purpose", Text, nullable=False),
    # As the client declared it; the parts must come to the same.
    Column("bytes", BigInteger, nullable=False),
    Column("expires_after_seconds", Integer),
    # One that is pending after `expires_at` has expired; nothing needs to say so.
    Column("status", Text, nullable=False, server_default=text("'pending'")),
    # What it was completed as, so that the same call again gets the same answer.
    Column("part_ids", ARRAY(Text)),
    Column("file_id", Text),
    _moment("created_at", required=True),
    _moment("expires_at", required=True),
    UniqueConstraint("project_id", "id", name="uploads_belong_to_one_project"),
    CheckConstraint("status IN ('pending', 'completed', 'cancelled')", name="upload_status_is_known"),
    CheckConstraint("(status = 'completed') = (file_id IS NOT NULL)", name="completed_means_there_is_a_file"),
)

files = Table(
    "files",
    metadata,
    Column("id", Text, primary_key=True),
    Column("project_id", Text, ForeignKey("projects.id"), nullable=False),
    Column("purpose", Text, nullable=False),
    # The client's words: shown, never used as a path.
    Column("filename", Text, nullable=False),
    # "uploading" files are invisible; `jobs.files.publish` ends that. A "part" of an upload stays invisible.
    Column("status", Text, nullable=False),
    Column("bytes", BigInteger, nullable=False, server_default=ZERO),
    Column("sha256", LargeBinary),
    _count("requests"),
    # Distinct values over the file's lines, so that creating a batch need not read the lines again. Models in the order
    # of their first lines: `model_no` below, at the lines and at what is made of them, is a position here, from 0.
    Column("urls", ARRAY(Text), nullable=False, server_default=text("'{}'")),
    Column("models", ARRAY(Text), nullable=False, server_default=text("'{}'")),
    # [{code, message, param, line}], found at upload, reported by each batch that is created from the file.
    Column("problems", JSON),
    # Set on output and error files only: they are views over that batch's results.
    Column("batch_id", Text),
    # Set on parts only.
    Column("upload_id", Text),
    _moment("created_at", required=True),
    _moment("expires_at"),
    _moment("deleted_at"),
    # From here on its lines or results go, the largest files in more than one step.
    _moment("sweep_began_at"),
    # They are gone; the row stays as a tombstone.
    _moment("swept_at"),
    UniqueConstraint("project_id", "id", name="files_belong_to_one_project"),
    ForeignKeyConstraint(
        ["project_id", "upload_id"],
        ["uploads.project_id", "uploads.id"],
        name="parts_belong_to_the_project_of_their_upload",
    ),
    CheckConstraint("status IN ('uploading', 'part', 'processed')", name="file_status_is_known"),
    CheckConstraint("(status = 'part') = (upload_id IS NOT NULL)", name="parts_have_an_upload"),
    Index("files_are_listed_newest_first", "project_id", "created_at", "id"),
    Index(
        "files_that_may_be_swept",
        "id",
        postgresql_where=text(
            "swept_at IS NULL AND (deleted_at IS NOT NULL OR expires_at IS NOT NULL OR status IN ('uploading', 'part'))"
        ),
    ),
)

lines = Table(
    "lines",
    metadata,
    Column("file_id", Text, primary_key=True),
    # Physical line, counted from 1. Blank lines have one too.
    Column("line_no", Integer, primary_key=True, autoincrement=False),
    # Null: the line is blank, or not valid.
    Column("custom_id", Text),
    # The exact bytes with their line end. bytea with lz4, never jsonb: that loses \u0000, duplicate keys and order.
    Column("content", BYTEA, nullable=False),
    # Null: no request, or of an upload before there were numbers, whose one model needs none.
    Column("model_no", SmallInteger),
)

batches = Table(
    "batches",
    metadata,
    Column("id", Text, primary_key=True),
    Column("project_id", Text, ForeignKey("projects.id"), nullable=False),
    Column("input_file_id", Text, nullable=False),
    # Null when the named input file does not exist here: such a batch is created and fails (contract, L1).
    Column("source_file_id", Text),
    Column("endpoint", Text, nullable=False),
    Column("completion_window", Text, nullable=False),
    Column("model", Text),
    Column("status", Text, nullable=False, server_default=text(f"'{BatchStatus.VALIDATING}'")),
    Column("metadata", JSON),
    Column("errors", JSON),
    Column("output_expires_after_seconds", Integer),
    # Higher ones first, among the batches of the project.
    _count("priority", SmallInteger),
    # An estimate, counted against the project's quota until the batch ends.
    _count("enqueued_tokens", BigInteger),
    _moment("created_at", required=True),
    _moment("expires_at", required=True),
    _moment("in_progress_at"),
    _moment("finalizing_at"),
    _moment("completed_at"),
    _moment("failed_at"),
    _moment("expired_at"),
    _moment("cancelling_at"),
    _moment("cancelled_at"),
    ForeignKeyConstraint(
        ["project_id", "source_file_id"], ["files.project_id", "files.id"], name="batches_read_files_of_their_project"
    ),
    UniqueConstraint("project_id", "id", name="batches_belong_to_one_project"),
    CheckConstraint(_one_of("status", BatchStatus), name="batch_status_is_known"),
    CheckConstraint("(status = 'completed') = (completed_at IS NOT NULL)", name="completed_at_means_completed"),
    CheckConstraint("(status = 'failed') = (failed_at IS NOT NULL)", name="failed_at_means_failed"),
    CheckConstraint("(status = 'expired') = (expired_at IS NOT NULL)", name="expired_at_means_expired"),
    CheckConstraint("(status = 'cancelled') = (cancelled_at IS NOT NULL)", name="cancelled_at_means_cancelled"),
    Index("batches_are_listed_newest_first", "project_id", "created_at", "id"),
    Index("batches_of_a_file", "source_file_id"),
    Index(
        "batches_that_are_not_over",
        "status",
        postgresql_where=text("status IN ('validating', 'in_progress', 'finalizing', 'cancelling')"),
    ),
)

requests = Table(
    "requests",
    metadata,
    Column("batch_id", Text, primary_key=True),
    # The line of the source file that holds the request.
    Column("line_no", Integer, primary_key=True, autoincrement=False),
    Column("custom_id", Text, nullable=False),
    _count("model_no", SmallInteger),
    Index("custom_ids_are_unique_in_a_batch", "batch_id", "custom_id", unique=True),
)

shards = Table(
    "shards",
    metadata,
    Column("id", Text, primary_key=True),
    Column("project_id", Text, nullable=False),
    Column("batch_id", Text, nullable=False),
    # Position in the batch, from 0.
    Column("number", Integer, nullable=False),
    # The requests of the batch with first_line <= line_no <= last_line and the shard's `model_no`.
    Column("first_line", Integer, nullable=False),
    Column("last_line", Integer, nullable=False),
    Column("model", Text, nullable=False),
    _count("model_no", SmallInteger),
    # Its batch's.
    _count("priority", SmallInteger),
    Column("state", Text, nullable=False, server_default=text(f"'{ShardState.QUEUED}'")),
    # Raised by each claim; every write of the holder carries it.
    _count("lease_token", BigInteger),
    _moment("lease_until"),
    # When Celery was last told, null before the first time.
    _moment("hinted_at"),
    # Null: an ordinary shard. Else it is run alone, because its rows were aboard when an engine died; deaths under
    # leases with a higher token than this are its own (jobs.suspects).
    Column("suspect_since", BigInteger),
    # The busy worker that a suspect waits for, and until when other busy ones pass it over.
    Column("reserved_by", Text),
    _moment("reserved_until"),
    Column("total", Integer, nullable=False),
    _count("completed"),
    _count("failed"),
    _count("input_tokens", BigInteger),
    _count("cached_tokens", BigInteger),
    _count("output_tokens", BigInteger),
    _count("reasoning_tokens", BigInteger),
    _moment("created_at", required=True),
    ForeignKeyConstraint(
        ["project_id", "batch_id"],
        ["batches.project_id", "batches.id"],
        name="shards_belong_to_the_project_of_their_batch",
    ),
    UniqueConstraint("batch_id", "number", name="shards_of_a_batch_are_numbered"),
    CheckConstraint(_one_of("state", ShardState), name="shard_state_is_known"),
    CheckConstraint(
        "completed >= 0 AND failed >= 0 AND completed + failed <= total", name="no_more_outcomes_than_requests"
    ),
    CheckConstraint("(state = 'done') = (completed + failed = total)", name="done_means_every_request_has_an_outcome"),
    CheckConstraint("(state = 'running') = (lease_until IS NOT NULL)", name="running_means_leased"),
    Index(
        "queued_shards_are_claimed_in_order",
        "model",
        "project_id",
        text("priority DESC"),
        "created_at",
        "number",
        postgresql_where=text("state = 'queued'"),
    ),
    Index("leases_end", "lease_until", postgresql_where=text("state = 'running'")),
)

turns = Table(
    "turns",
    metadata,
    # When a shard of the project was last claimed.
    Column("project_id", Text, ForeignKey("projects.id"), primary_key=True),
    _moment("claimed_at", required=True),
)

attempts = Table(
    "attempts",
    metadata,
    Column("shard_id", Text, ForeignKey("shards.id"), primary_key=True),
    Column("lease_token", BigInteger, primary_key=True, autoincrement=False),
    Column("worker_id", Text, nullable=False),
    _moment("started_at", required=True),
    _moment("ended_at"),
    # done, released, stopped, lost; died: its worker reported that the engine died
    Column("end_reason", Text),
    # Requests up to this line may have been started, later ones were not. Null: none was, or a worker of a release
    # without this column held it and nobody knows.
    Column("aboard_line", Integer),
    CheckConstraint("(ended_at IS NULL) = (end_reason IS NULL)", name="an_ended_attempt_has_a_reason"),
)

results = Table(
    "results",
    metadata,
    Column("batch_id", Text, primary_key=True),
    Column("line_no", Integer, primary_key=True, autoincrement=False),
    # True: a line of the error file; false: of the output file.
    Column("is_error", Boolean, nullable=False),
    # HTTP status in the row's response; null when it never ran.
    Column("status_code", SmallInteger),
    Column("code", Text),
    Column("lease_token", BigInteger, nullable=False),
    # The whole line of the output or error file, with its line end.
    Column("content", BYTEA, nullable=False),
    _moment("created_at", required=True),
)

calls = Table(
    "calls",
    metadata,
    Column("project_id", Text, ForeignKey("projects.id"), primary_key=True),
    # An Idempotency-Key, or what stands in for it when the SDK repeats a call without one.
    Column("key", Text, primary_key=True),
    Column("fingerprint", LargeBinary, nullable=False),
    Column("object_id", Text, nullable=False),
    _moment("created_at", required=True),
    Index("calls_are_forgotten", "created_at"),
    Index("calls_of_an_object", "object_id"),
)

webhook_endpoints = Table(
    "webhook_endpoints",
    metadata,
    Column("id", Text, primary_key=True),
    Column("project_id", Text, ForeignKey("projects.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("url", Text, nullable=False),
    Column("event_types", ARRAY(Text), nullable=False),
    # Sealed (jobs.vault), not hashed: each message is signed with it.
    Column("secret", Text, nullable=False),
    # What is shown of it; null: made by a release that did not seal.
    Column("secret_hint", Text),
    # Signs too, until then.
    Column("previous_secret", Text),
    _moment("previous_secret_until"),
    _moment("created_at", required=True),
    _moment("updated_at", required=True),
    # It answered that it is gone; nothing is sent until its URL is set again.
    _moment("disabled_at"),
    # No courier is at it after this time. The one that has waited longest is next.
    _moment("free_at", required=True),
    UniqueConstraint("project_id", "id", name="webhook_endpoints_belong_to_one_project"),
)

webhook_deliveries = Table(
    "webhook_deliveries",
    metadata,
    # On the wire: `webhook-id`, and the `id` of the event.
    Column("id", Text, primary_key=True),
    Column("project_id", Text, nullable=False),
    Column("endpoint_id", Text, nullable=False),
    Column("batch_id", Text, nullable=False),
    Column("type", Text, nullable=False),
    _moment("created_at", required=True),
    # When it is due; null once it is over.
    _moment("next_at"),
    # Raised when an attempt begins; what is noted about an attempt names it.
    _count("attempts"),
    _moment("attempted_at"),
    # What came of the last attempt: the answer's status, or why there was none.
    Column("last_status", Integer),
    Column("last_error", Text),
    _moment("delivered_at"),
    _moment("given_up_at"),
    ForeignKeyConstraint(
        ["project_id", "endpoint_id"],
        ["webhook_endpoints.project_id", "webhook_endpoints.id"],
        name="webhook_deliveries_go_to_endpoints_of_their_project",
        ondelete="CASCADE",
    ),
    ForeignKeyConstraint(
        ["project_id", "batch_id"],
        ["batches.project_id", "batches.id"],
        name="webhook_deliveries_tell_of_batches_of_their_project",
    ),
    CheckConstraint(
        "num_nonnulls(next_at, delivered_at, given_up_at) = 1", name="webhook_delivery_waits_or_came_or_was_given_up"
    ),
    Index("webhook_deliveries_that_wait", "endpoint_id", "next_at", postgresql_where=text("next_at IS NOT NULL")),
    Index("webhook_deliveries_are_listed_newest_first", "endpoint_id", "created_at", "id"),
    Index("webhook_deliveries_are_forgotten", "created_at"),
)

audit_log = Table(
    "audit_log",
    metadata,
    # Written by triggers (migration 0013), in the transaction of the deed; rows are never changed or removed.
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    _moment("at", required=True),
    # "key <id>", or "user <name>": who was logged in to Postgres.
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("project_id", Text, nullable=False),
    Column("object_id", Text, nullable=False),
    Index("audit_log_of_a_project", "project_id", "id"),
)

workers = Table(
    "workers",
    metadata,
    Column("id", Text, primary_key=True),
    Column("hostname", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("engine", Text, nullable=False),
    Column("models", ARRAY(Text), nullable=False),
    # The default is what a worker of a release without this column serves.
    Column("endpoints", ARRAY(Text), nullable=False, server_default=text("'{/v1/chat/completions,/v1/completions}'")),
    Column("version", Text, nullable=False),
    # Of its engine and its model (`workers.revisions`), so that one can say afterwards what answered.
    Column("revision", Text),
    # When it was last seen: `running`, `waiting` requests of its engine, `kv_use` of its KV cache (0 to 1, null if it
    # does not say), `preempted` since it started, and the `shards` it holds. Null: stopped, not known yet, or older.
    Column("load", JSONB(none_as_null=True)),
    _moment("started_at", required=True),
    _moment("seen_at", required=True),
    _moment("stopped_at"),
)

breakers = Table(
    "breakers",
    metadata,
    Column("hostname", Text, primary_key=True),
    Column("model", Text, primary_key=True),
    # In a row, with no row started in between.
    Column("failures", Integer, nullable=False),
    # No engine is started there before this time; null: at once.
    _moment("open_until"),
    _moment("failed_at", required=True),
)

min_worker_version = Table(
    "min_worker_version",
    metadata,
    Column("only_row", Boolean, primary_key=True, server_default=text("true")),
    Column("version", Text, nullable=False),
    _moment("changed_at", required=True),
    CheckConstraint("only_row", name="there_is_one_minimum"),
)
