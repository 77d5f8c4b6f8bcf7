"""TIME: these set the server's clock forward and come last"""

from collections.abc import Callable

from conformance_anthropic.user import User, shape, text

DAY = 86_400
Clock = Callable[[int], None]


def test_expired(user: User, clock: Clock) -> None:
    """After 24 hours a batch has ended: what was done `succeeded`, the rest is `expired`, and no request is missing."""
    requests = user.slow_requests()
    batch = user.create(requests)
    user.run(user.requests(1))
    clock(DAY + 60)
    batch = user.wait(batch)
    found = user.results(batch)
    assert set(found) == {request["custom_id"] for request in requests}
    rest = [result for result in found.values() if result.type != "succeeded"]
    assert rest and all(shape(result) == {"type": "expired"} for result in rest)
    done = [result for result in found.values() if result.type == "succeeded"]
    assert done, "results are kept"
    assert all(text(result) for result in done)
    assert batch.cancel_initiated_at is None


def test_archived(user: User, clock: Clock) -> None:
    """After a month the results are gone: `archived_at` is set, and asking for them is 404."""
    batch = user.run(user.requests(1))
    assert batch.archived_at is None
    clock(31 * DAY)
    found = user.batches.retrieve(batch.id)
    user.see("archived after", (found.archived_at - batch.created_at).days if found.archived_at else "…", "days")
    assert found.archived_at and found.archived_at > batch.created_at
    user.refused((400, 404), lambda: user.sdk.get(f"/v1/messages/batches/{batch.id}/results", cast_to=object))
