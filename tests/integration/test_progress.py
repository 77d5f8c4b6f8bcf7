"""How a batch comes along, as the database has it."""

from typing import Any

import pytest
from payloads import CHAT, jsonl, numbered, request

from jobs import batches, claims, db, files, fleet, progress
from jobs.claims import Claimant
from jobs.errors import NotFound
from jobs.leases import Lease
from jobs.outcomes import Outcome, failure, success
from jobs.protocol import BATCH_ENDPOINTS


def answered(line_no: int, tokens: int) -> Outcome:
    return success(line_no, f"row-{line_no - 1}", {"usage": {"prompt_tokens": 1, "completion_tokens": tokens}})


def pace(domain: Any, batch_id: str, project_id: str | None = None) -> progress.Pace:
    with db.reading(domain.engine) as connection:
        return progress.pace(connection, project_id or domain.project_id, batch_id)


def failures(domain: Any, batch_id: str) -> list[progress.Failures]:
    with db.reading(domain.engine) as connection:
        return progress.failures(connection, batch_id)


def lease_of(domain: Any, batch_id: str, number: int, models: list[str]) -> Lease:
    with db.transaction(domain.engine) as connection:
        claimant = Claimant("worker_1", models, [CHAT], 60)
        lease = claims.claim(connection, domain.shards(batch_id)[number].id, claimant)
    assert isinstance(lease, Lease)
    return lease


def test_rows_and_tokens_are_where_they_ended(domain: Any) -> None:
    batch_id = domain.new_batch(12)
    first = lease_of(domain, batch_id, 0, ["scripted"])
    domain.write_outcomes(first, [answered(1, 10), answered(2, 30)])
    domain.later("50 seconds")
    second = lease_of(domain, batch_id, 1, ["scripted"])
    refused = failure(12, "row-11", status_code=400, message="No.", code="refused")
    domain.write_outcomes(second, [answered(11, 7), refused])
    domain.later("100 seconds")
    seen = pace(domain, batch_id)
    assert len(seen.rows) == progress.BUCKETS
    assert 100 <= seen.seconds * len(seen.rows) < 160
    begun = [place for place, rows in enumerate(seen.rows) if rows]
    assert [seen.rows[place] for place in begun] == [2, 2]
    assert begun[0] == 0 and 15 < begun[1] <= 30
    assert [seen.tokens[place] for place in begun] == [40, 7], "refused rows have no tokens"


def test_models_that_take_turns_are_counted_once_each(domain: Any) -> None:
    with db.transaction(domain.engine) as connection:
        fleet.register(connection, "worker_2", engine="none", models=["a", "b"], endpoints=BATCH_ENDPOINTS)
    data = jsonl(request(f"row-{number}", model="ab"[number % 2]) for number in range(6))
    batch_id = domain.create(domain.upload(data))
    for number, tokens in ((0, 1), (1, 100)):
        lease = lease_of(domain, batch_id, number, ["a", "b"])
        domain.write_outcomes(lease, [answered(line, tokens) for line in domain.rows(lease)])
    seen = pace(domain, batch_id)
    assert sum(seen.rows) == 6
    assert sum(seen.tokens) == pytest.approx(303)


def test_rows_that_never_ran_are_no_speed(domain: Any) -> None:
    batch_id = domain.new_batch(3)
    with db.transaction(domain.engine) as connection:
        batches.cancel(connection, domain.project_id, batch_id)
    assert domain.settle(batch_id) == "cancelled"
    assert sum(pace(domain, batch_id).rows) == 0
    (group,) = failures(domain, batch_id)
    assert (group.code, group.status_code, group.requests, group.line_no) == ("batch_cancelled", None, 3, 1)
    assert group.message == "This request was not executed because the batch was cancelled."


def test_failures_are_grouped_with_their_first(domain: Any) -> None:
    batch_id = domain.new_batch(6)
    lease = lease_of(domain, batch_id, 0, ["scripted"])
    outcomes = [
        failure(line, f"row-{line - 1}", status_code=400, message=f"No {line}.", code="rare" if line == 2 else "often")
        for line in (1, 2, 3, 4)
    ]
    domain.write_outcomes(lease, outcomes)
    seen = [(each.code, each.requests, each.custom_id, each.message) for each in failures(domain, batch_id)]
    assert seen == [("often", 3, "row-0", "No 1."), ("rare", 1, "row-1", "No 2.")]


def test_a_request_is_opened_with_its_words_as_long_as_they_are_there(domain: Any) -> None:
    file_id = domain.upload(numbered(2))
    batch_id = domain.create(file_id)
    with db.reading(domain.engine) as connection:
        opened = progress.open_row(connection, domain.project_id, batch_id, 2, most_bytes=1_000)
    assert opened.custom_id == "row-1"
    assert opened.request and opened.request.is_whole and "text 1" in opened.request.text
    assert opened.result is None
    with db.transaction(domain.engine) as connection:
        batches.cancel(connection, domain.project_id, batch_id)
        files.mark_deleted(connection, domain.project_id, file_id)
    assert domain.settle(batch_id) == "cancelled"
    assert domain.sweep()
    with db.reading(domain.engine) as connection:
        opened = progress.open_row(connection, domain.project_id, batch_id, 2, most_bytes=1_000)
    assert opened.request is None
    assert opened.result and "batch_cancelled" in opened.result.text


def test_another_projects_batch_has_no_pace_and_no_rows(domain: Any) -> None:
    batch_id = domain.new_batch(1)
    with pytest.raises(NotFound):
        pace(domain, batch_id, "proj_other")
    with db.reading(domain.engine) as connection, pytest.raises(NotFound):
        progress.open_row(connection, "proj_other", batch_id, 1, most_bytes=1_000)


def test_of_a_long_line_only_the_beginning_is_read(domain: Any) -> None:
    data = numbered(1, lambda _: "@" * 10_000).replace(b"@", "\u00fc".encode())
    batch_id = domain.create(domain.upload(data))
    with db.reading(domain.engine) as connection:
        for most in (999, 1_000):
            opened = progress.open_row(connection, domain.project_id, batch_id, 1, most_bytes=most)
            assert opened.request and not opened.request.is_whole and opened.request.bytes > 20_000
            assert opened.request.text.endswith("\u00fc") and len(opened.request.text.encode()) >= most - 1
