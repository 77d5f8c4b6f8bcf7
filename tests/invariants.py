"""What must hold after every test, whatever happened in it; checked over the database and the files."""

from payloads import parse
from sqlalchemy import Engine, text

from jobs import content, ids
from jobs.states import TERMINAL


def check(engine: Engine) -> None:
    """Check every batch in the database."""
    with engine.connect() as connection:
        batches = connection.execute(text("SELECT id, status, source_file_id FROM batches")).all()
        for shard in connection.execute(text("SELECT * FROM shards")):
            rows = connection.execute(
                text(
                    "SELECT count(*) FILTER (WHERE NOT is_error), count(*) FILTER (WHERE is_error) "
                    "FROM results JOIN requests USING (batch_id, line_no) "
                    "WHERE batch_id = :batch_id AND line_no BETWEEN :first_line AND :last_line AND model_no = :model_no"
                ),
                dict(shard._mapping),
            ).one()
            assert (shard.completed, shard.failed) == tuple(rows), "counters are the rows"
    for batch in batches:
        if batch.status in TERMINAL and batch.status != "failed":
            _check_ended(engine, batch.id)


def _check_ended(engine: Engine, batch_id: str) -> None:
    with engine.connect() as connection:
        asked = connection.execute(
            text("SELECT custom_id FROM requests WHERE batch_id = :id ORDER BY line_no"), {"id": batch_id}
        )
        wanted = list(asked.scalars())
        open_shards = connection.execute(
            text("SELECT count(*) FROM shards WHERE batch_id = :id AND state <> 'done'"), {"id": batch_id}
        ).scalar_one()
        open_attempts = connection.execute(
            text(
                "SELECT count(*) FROM attempts a JOIN shards s ON s.id = a.shard_id "
                "WHERE s.batch_id = :id AND a.ended_at IS NULL"
            ),
            {"id": batch_id},
        ).scalar_one()
        files = connection.execute(text("SELECT id, bytes FROM files WHERE batch_id = :id"), {"id": batch_id})
        published = {file.id: file.bytes for file in files}
    assert open_shards == 0, "a batch that has ended has no open shard"
    assert open_attempts == 0, "nobody still runs a part of it"
    seen: list[str] = []
    for kind in ids.RESULT_KINDS:
        file_id = ids.result_file_id(batch_id, kind)
        data = b"".join(content.stream(engine, content.Source(file_id, batch_id, is_error=kind == "error")))
        assert published.get(file_id, 0) == len(data), "the file's size is what is in it"
        seen += [row["custom_id"] for row in parse(data)]
    assert sorted(seen) == sorted(wanted), "every custom_id exactly once"
