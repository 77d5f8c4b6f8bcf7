"""Batches whose requests use several models that one worker serves together: a base model and its adapters."""

from collections.abc import Sequence
from itertools import cycle
from typing import Any

import pytest
from conftest import migrate
from payloads import CHAT, jsonl, parse, request
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from jobs import batches, claims, content, db, fleet, ids, leases
from jobs.claims import Claimant
from jobs.jsonl import MAX_DISTINCT
from jobs.leases import Lease
from jobs.outcomes import failure
from jobs.protocol import BATCH_ENDPOINTS, COMPLETIONS, EMBEDDINGS

MODELS = ["base", "french", "german"]


def register(domain: Any, models: Sequence[str], endpoints: Sequence[str] = BATCH_ENDPOINTS) -> None:
    with db.transaction(domain.engine) as connection:
        fleet.register(connection, ids.new_worker_id(), engine="none", models=models, endpoints=endpoints)


def cut_at(domain: Any, requests: int) -> None:
    shards = domain.settings.shards.model_copy(update={"max_requests": requests})
    domain.settings = domain.settings.model_copy(update={"shards": shards})


@pytest.fixture(autouse=True)
def small_shards(domain: Any) -> None:
    cut_at(domain, 4)


@pytest.fixture
def together(domain: Any) -> None:
    register(domain, MODELS)


def mixed(count: int, models: Sequence[str] = MODELS) -> bytes:
    """Return a file whose lines take turns with the models."""
    turns = cycle(models)
    return jsonl(request(f"row-{number}", model=next(turns)) for number in range(count))


def claim(domain: Any, hinted: str, models: Sequence[str] = MODELS) -> Lease | None:
    with db.transaction(domain.engine) as connection:
        claimed = claims.claim(connection, hinted, Claimant("w", models, [CHAT], 60))
    assert not isinstance(claimed, claims.BeAlone)
    return claimed


def claim_all(domain: Any, batch_id: str) -> list[Lease]:
    claimed = [claim(domain, shard.id) for shard in domain.shards(batch_id)]
    assert all(claimed)
    return [lease for lease in claimed if lease]


def problems(domain: Any, data: bytes) -> list[tuple[str, str | None, int | None]]:
    batch = domain.batch(domain.create(domain.upload(data)))
    assert batch.status == "failed"
    return [(error.code, error.param, error.line) for error in batch.errors.data]


def written(domain: Any, batch_id: str, kind: ids.ResultKind = "output") -> list[dict[str, Any]]:
    source = content.Source("", batch_id, is_error=kind == "error")
    return parse(b"".join(content.stream(domain.engine, source)))


def custom_ids(rows: list[dict[str, Any]]) -> list[int]:
    return [int(row["custom_id"].removeprefix("row-")) for row in rows]


def test_each_shard_has_the_rows_of_one_model_in_order(domain: Any, together: None) -> None:
    batch_id = domain.create(domain.upload(mixed(15)))
    batch = domain.batch(batch_id)
    assert (batch.status, batch.model, batch.request_counts.total) == ("in_progress", None, 15)
    shards = domain.shards(batch_id)
    assert [(shard.model, shard.first_line, shard.last_line, shard.total) for shard in shards] == [
        ("base", 1, 10, 4),
        ("base", 13, 13, 1),
        ("french", 2, 11, 4),
        ("french", 14, 14, 1),
        ("german", 3, 12, 4),
        ("german", 15, 15, 1),
    ]
    rows = [domain.rows(lease) for lease in claim_all(domain, batch_id)]
    assert rows == [[1, 4, 7, 10], [13], [2, 5, 8, 11], [14], [3, 6, 9, 12], [15]]


def test_every_row_has_one_outcome_and_the_output_is_in_input_order(domain: Any, together: None) -> None:
    batch_id = domain.create(domain.upload(mixed(15)))
    for lease in reversed(claim_all(domain, batch_id)):
        domain.write(lease, domain.rows(lease))
    assert domain.settle(batch_id) == "completed"
    assert custom_ids(written(domain, batch_id)) == list(range(15))


def test_blank_lines_and_a_shuffled_file_change_nothing(domain: Any, together: None) -> None:
    order = ["german", "german", "base", "german", "french", "base"]
    data = b"\n" + mixed(3, order[:3]) + b"\r\n\n" + b"".join(mixed(6, order).splitlines(keepends=True)[3:])
    batch_id = domain.create(domain.upload(data, chunk=7))
    claimed = claim_all(domain, batch_id)
    assert [shard.model for shard in domain.shards(batch_id)] == ["german", "base", "french"]
    assert [domain.rows(lease) for lease in claimed] == [[2, 3, 7], [4, 9], [8]]


@pytest.mark.parametrize(
    "fleet_of",
    [
        [(["base"], BATCH_ENDPOINTS)],
        [([model], BATCH_ENDPOINTS) for model in MODELS],
        [(MODELS[:2], BATCH_ENDPOINTS), (MODELS[1:], BATCH_ENDPOINTS)],
        [(MODELS, [COMPLETIONS, EMBEDDINGS]), (["base"], [CHAT])],
    ],
    ids=["one model only", "each by another worker", "no worker has all", "at another endpoint"],
)
def test_models_that_no_worker_serves_together_are_refused(domain: Any, fleet_of: Any) -> None:
    for models, endpoints in fleet_of:
        register(domain, models, endpoints)
    expected = [("model_mismatch", "body.model", line) for line in (2, 3, 5)]
    assert problems(domain, mixed(5)) == expected


def test_a_worker_that_was_there_lately_counts(domain: Any, together: None) -> None:
    file_id = domain.upload(mixed(3))
    domain.execute("UPDATE workers SET seen_at = app_now() - interval '1 hour'")
    assert domain.batch(domain.create(file_id)).status == "in_progress"
    domain.execute("UPDATE workers SET seen_at = app_now() - interval '30 days'")
    assert domain.batch(domain.create(file_id)).status == "failed"


def test_only_what_is_wrong_is_named(domain: Any, together: None) -> None:
    elsewhere = {**request("b", model="french"), "url": COMPLETIONS, "body": {"model": "french", "prompt": "x"}}
    data = jsonl([request("a", model="base"), elsewhere]) + b"{}\n"
    assert problems(domain, data) == [("invalid_url", "url", 2), ("missing_required_parameter", "custom_id", 3)]


def test_lines_with_too_many_models_are_named(domain: Any) -> None:
    models = [f"m{number}" for number in range(MAX_DISTINCT + 2)]
    register(domain, models)
    lines = [MAX_DISTINCT + 1, MAX_DISTINCT + 2]
    assert problems(domain, mixed(len(models), models)) == [("model_mismatch", "body.model", line) for line in lines]
    file_id = domain.upload(mixed(MAX_DISTINCT, models))
    assert {shard.model for shard in domain.shards(domain.create(file_id))} == set(models[:MAX_DISTINCT])


def test_a_worker_gets_shards_of_the_models_that_it_serves(domain: Any, together: None) -> None:
    batch_id = domain.create(domain.upload(mixed(9)))
    german = claim(domain, domain.shards(batch_id)[0].id, ["german", "italian"])
    assert german
    assert domain.rows(german) == [3, 6, 9]
    assert claim(domain, domain.shards(batch_id)[0].id, ["german"]) is None


def test_models_are_claimed_one_after_the_other_whatever_hints_come(domain: Any, together: None) -> None:
    """Hints wait in a queue for each model, which Celery empties in turns."""
    batch_id = domain.create(domain.upload(mixed(24)))
    shards = domain.shards(batch_id)
    hints = [shards[number].id for number in (4, 0, 2, 5, 1, 3)]
    order = [lease.model_no for hint in hints if (lease := claim(domain, hint))]
    assert order == [0, 0, 1, 1, 2, 2]


def test_of_one_model_the_hinted_shard_is_taken(domain: Any, together: None) -> None:
    shards = domain.shards(domain.create(domain.upload(mixed(24))))
    lease = claim(domain, shards[1].id)
    assert lease
    assert lease.shard_id == shards[1].id


def test_a_mixed_batch_does_not_hold_up_an_older_one(domain: Any, together: None) -> None:
    older = domain.create(domain.upload(mixed(4, ["german"])))
    newer = domain.create(domain.upload(mixed(6)))
    with db.transaction(domain.engine) as connection:
        lease = claims.claim_unhinted(connection, Claimant("w", MODELS, [CHAT], 60), hint_seconds=10)
    assert isinstance(lease, Lease)
    assert lease.batch_id == older != newer


def test_priority_counts_across_models(domain: Any, together: None) -> None:
    """With more shards of one model than a claim looks at, one of another model was not seen."""
    cut_at(domain, 1)
    domain.create(domain.upload(mixed(40, ["base"])))
    high = domain.create(domain.upload(mixed(1, ["german"])))
    domain.execute("UPDATE shards SET priority = 5 WHERE batch_id = :id", id=high)
    lease = claim(domain, "shard_nope")
    assert lease
    assert lease.batch_id == high


def test_a_lost_shard_goes_on_with_its_own_rows(domain: Any, together: None) -> None:
    batch_id = domain.create(domain.upload(mixed(9)))
    base, french, _ = claim_all(domain, batch_id)
    domain.write(base, [4])
    domain.write(french, [2])
    domain.execute("UPDATE shards SET lease_until = app_now() - interval '1 s' WHERE id = :id", id=base.shard_id)
    again = claim(domain, base.shard_id)
    assert again
    assert (again.token, again.remaining, domain.rows(again)) == (2, 2, [1, 7])
    assert domain.write(again, [1, 7]) == {again.held: True}


def test_rows_are_looked_up_one_by_one_whatever_the_statistics_say(domain: Any, together: None) -> None:
    """Postgres compared each line between a shard's first and last with all requests of the batch, for 15 seconds."""
    for table in ("lines", "requests", "results"):
        domain.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = false)")
    domain.create(domain.upload(mixed(3)))
    domain.execute("ANALYZE")
    cut_at(domain, 10_000)
    lease = claim(domain, domain.shards(domain.create(domain.upload(mixed(20_000))))[1].id)
    assert lease
    with db.transaction(domain.engine) as connection:
        connection.execute(text("SET LOCAL statement_timeout = '5s'"))
        assert len(leases.load_rows(connection, lease)) == lease.remaining


def stop(domain: Any, batch_id: str, status: str, held: Sequence[Lease]) -> None:
    """Bring a batch to an early end; workers give back what they hold."""
    if status == "cancelled":
        with db.transaction(domain.engine) as connection:
            batches.cancel(connection, domain.project_id, batch_id)
    else:
        domain.execute("UPDATE batches SET expires_at = app_now() WHERE id = :id", id=batch_id)
    for lease in held:
        assert domain.release(lease) == "stopped"
    assert domain.settle(batch_id) == status


@pytest.mark.parametrize(("status", "code"), [("cancelled", "batch_cancelled"), ("expired", "batch_expired")])
def test_an_early_end_gives_each_row_that_is_left_its_outcome(
    domain: Any, together: None, status: str, code: str
) -> None:
    batch_id = domain.create(domain.upload(mixed(18)))
    whole, untouched, begun, *others = claim_all(domain, batch_id)
    domain.write(whole, domain.rows(whole))
    domain.write(begun, [5])
    assert domain.release(others.pop()) == "queued"
    stop(domain, batch_id, status, [untouched, begun, *others])
    never_ran = written(domain, batch_id, "error")
    assert {row["error"]["code"] for row in never_ran} == {code}
    assert custom_ids(never_ran) == [number for number in range(18) if number not in (0, 3, 4, 6, 9)]
    assert custom_ids(written(domain, batch_id)) == [0, 3, 4, 6, 9]


def test_what_failed_is_run_again_by_the_models_that_it_names(domain: Any, together: None) -> None:
    first = domain.create(domain.upload(mixed(12)))
    failed = [1, 4, 9, 12]
    for lease in claim_all(domain, first):
        rows = domain.rows(lease)
        domain.write_outcomes(
            lease, [failure(line, f"row-{line - 1}", status_code=500, message="no") for line in rows if line in failed]
        )
        domain.write(lease, [line for line in rows if line not in failed])
    domain.settle(first)
    second = domain.create(ids.result_file_id(first, "error"))
    assert [(shard.model, shard.total) for shard in domain.shards(second)] == [("base", 2), ("german", 2)]
    claimed = claim_all(domain, second)
    assert [domain.rows(lease) for lease in claimed] == [[1, 4], [9, 12]]
    stop(domain, second, "cancelled", claimed)
    third = domain.create(ids.result_file_id(second, "error"))
    assert [domain.rows(lease) for lease in claim_all(domain, third)] == [[1, 4], [9, 12]]


def test_a_retry_needs_a_worker_too(domain: Any, together: None) -> None:
    first = domain.create(domain.upload(mixed(3)))
    stop(domain, first, "cancelled", [])
    domain.execute("DELETE FROM workers")
    register(domain, ["base"])
    batch = domain.batch(domain.create(ids.result_file_id(first, "error")))
    assert [(error.code, error.line) for error in batch.errors.data] == [("model_mismatch", 2), ("model_mismatch", 3)]


def test_what_was_there_before_the_migration_goes_on(domain: Any, together: None, database_url: str) -> None:
    alone = domain.create(domain.upload(mixed(9, ["base"])))
    first, second, third = domain.shards(alone)
    held = claim(domain, first.id)
    domain.write(held, [1])
    plain, several = domain.upload(mixed(3, ["base"])), domain.upload(mixed(4))
    for revision in ("0009", "head"):
        domain.engine.dispose()
        migrate(database_url, revision)
    assert domain.rows(held) == [2, 3, 4]
    domain.write(held, [2, 3, 4])
    for shard in (second, third):
        lease = claim(domain, shard.id)
        domain.write(lease, domain.rows(lease))
    assert domain.settle(alone) == "completed"
    assert domain.batch(domain.create(plain)).status == "in_progress"
    batch = domain.batch(domain.create(several))
    assert [error.line for error in batch.errors.data] == [2, 3], "refused, as before"


def test_no_way_back_while_a_mixed_batch_runs(domain: Any, together: None, database_url: str) -> None:
    batch_id = domain.create(domain.upload(mixed(3)))
    domain.engine.dispose()
    with pytest.raises(DBAPIError, match="batches that mix models run"):
        migrate(database_url, "0009")
    stop(domain, batch_id, "cancelled", [])
    domain.engine.dispose()
    for revision in ("0009", "head"):
        migrate(database_url, revision)
    assert len(written(domain, batch_id, "error")) == 3
    domain.execute("DELETE FROM shards")
