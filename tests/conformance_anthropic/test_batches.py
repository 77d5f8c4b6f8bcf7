"""Batches"""

import datetime as dt

from conformance_anthropic.user import User, kind, shape, text

UNKNOWN = "msgbatch_00000000000000000000000000000000"
FIELDS = {
    "id", "type", "processing_status", "request_counts", "created_at", "ended_at", "expires_at", "cancel_initiated_at",
    "archived_at", "results_url",
}  # fmt: skip
COUNTS = {"processing", "succeeded", "errored", "canceled", "expired"}
UNTIL_IT_ENDS = {"ended_at", "cancel_initiated_at", "archived_at", "results_url"}
DAY = dt.timedelta(days=1)


def test_create_inline(user: User) -> None:
    """The requests are in the call; the batch is `in_progress` or already `ended`, runs, and answers each of them."""
    batch = user.create(user.requests(3))
    assert batch.id.startswith("msgbatch_")
    assert batch.processing_status in ("in_progress", "ended")
    batch = user.wait(batch)
    assert user.batches.retrieve(batch.id) == batch
    assert all(text(result) for result in user.results(batch).values())


def test_all_fields_are_there(user: User) -> None:
    """A batch has every field, null when unset: at creation, at the end, in the list; and no count is missing."""
    created = user.create(user.requests(1))
    ended = user.wait(created)
    listed = next(batch for batch in user.batches.list() if batch.id == created.id)
    for batch in map(shape, (created, ended, listed)):
        assert FIELDS - set(batch) == set()
        assert set(batch["request_counts"]) == COUNTS
        assert batch["type"] == "message_batch"


def test_fields_of_a_running_batch(user: User) -> None:
    """Until it ends, `ended_at`, `results_url` and `archived_at` are null, and `cancel_initiated_at` if nobody asked."""
    batch = user.create(user.slow_requests())
    shown = shape(user.batches.retrieve(batch.id))
    user.batches.cancel(batch.id)
    assert {name: shown[name] for name in UNTIL_IT_ENDS} == dict.fromkeys(UNTIL_IT_ENDS)


def test_times(user: User) -> None:
    """RFC 3339 with an offset, in order; `expires_at` is 24 hours after `created_at`."""
    batch = user.run(user.requests(1))
    assert batch.ended_at and batch.created_at.tzinfo and batch.ended_at.tzinfo
    assert batch.created_at <= batch.ended_at < batch.expires_at
    assert batch.expires_at - batch.created_at == DAY


def test_counts_of_a_running_batch(user: User) -> None:
    """Until the batch ends, all requests are `processing`, though some are done."""
    requests = user.slow_requests()
    batch = user.create(requests)
    seen = [batch, *(user.batches.retrieve(batch.id) for _ in range(10))]
    user.batches.cancel(batch.id)
    expected = {**dict.fromkeys(COUNTS, 0), "processing": len(requests)}
    assert [each.request_counts.model_dump() for each in seen] == [expected] * len(seen)


def test_counts_of_an_ended_batch(user: User) -> None:
    """Once it has ended, none is `processing`, and the counts are those of its results."""
    batch = user.run([*user.requests(5), *(user.request(f"bad-{number}", **user.target.bad_body) for number in (1, 2))])
    user.results(batch)
    counts = batch.request_counts
    assert (counts.processing, counts.succeeded, counts.errored) == (0, 5, 2)


def test_retrieve_unknown(user: User) -> None:
    """`NotFoundError` of type `not_found_error` that names the id; for cancelling, deleting and results too."""
    for call in (user.batches.retrieve, user.batches.cancel, user.batches.delete, user.batches.results):
        error = user.refused(404, lambda call=call: call(UNKNOWN))  # type: ignore[misc]
        assert type(error).__name__ == "NotFoundError"
        assert kind(error) == "not_found_error"
        assert UNKNOWN in error.message


def test_cancel_keeps_what_is_done(user: User) -> None:
    """`canceling` or `ended` is answered, with `cancel_initiated_at`; the rest is `canceled`, and no request is missing."""
    requests = user.slow_requests()
    batch = user.create(requests)
    done = user.run(user.requests(1))
    assert done.request_counts.succeeded == 1
    answer = user.batches.cancel(batch.id)
    assert answer.processing_status in ("canceling", "ended")
    assert answer.cancel_initiated_at
    batch = user.wait(answer)
    found = user.results(batch)
    assert set(found) == {request["custom_id"] for request in requests}
    assert {result.type for result in found.values()} <= {"succeeded", "canceled"}
    assert all(text(result) for result in found.values() if result.type == "succeeded")
    assert "succeeded" in {result.type for result in found.values()}, "results are kept"
    assert batch.request_counts.canceled


def test_cancel_ended(user: User) -> None:
    """400 or 409: there is nothing left to cancel; the results stay."""
    batch = user.run(user.requests(1))
    user.refused((400, 409), lambda: user.batches.cancel(batch.id))
    assert set(user.results(batch)) == {"row-0"}


def test_cancel_twice(user: User) -> None:
    """Cancelling again a batch that is `canceling`, or ended that way, is answered with the batch."""
    batch = user.create(user.slow_requests())
    first, second = (user.batches.cancel(batch.id) for _ in range(2))
    assert first.cancel_initiated_at == second.cancel_initiated_at
    batch = user.wait(second)
    assert user.batches.cancel(batch.id) == batch


def test_delete_ended(user: User) -> None:
    """`message_batch_deleted`; afterwards the batch and its results are 404, and no list has it."""
    batch = user.run(user.requests(1))
    assert shape(user.batches.delete(batch.id)) == {"id": batch.id, "type": "message_batch_deleted"}
    for call in (user.batches.retrieve, user.batches.results, user.batches.delete):
        user.refused(404, lambda call=call: call(batch.id))  # type: ignore[misc]
    assert batch.id not in {each.id for each in user.batches.list(limit=100).data}


def test_delete_running(user: User) -> None:
    """400 or 409 until the batch has ended; it is still there."""
    batch = user.create(user.slow_requests())
    user.refused((400, 409), lambda: user.batches.delete(batch.id))
    assert user.batches.cancel(batch.id).id == batch.id
