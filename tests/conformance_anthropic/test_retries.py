"""Lost answers and retries"""

from conformance import proxy
from conformance.proxy import LosesTheFirst
from conformance_anthropic.user import User


def test_lost_answer_to_create(user: User) -> None:
    """A `create` whose answer got lost is repeated by the SDK; there is one batch."""
    newest = user.create(user.requests(1)).id
    losing = LosesTheFirst("/batches")
    with proxy.serving(user.target.base_url, losing) as way, user.through(way.base_url) as retrying:
        batch = retrying.create(user.requests(2))
    assert losing.lost
    made = [each.id for each in user.batches.list(limit=5, before_id=newest).data]
    user.see(len(way.calls), "requests,", len(made), "batch(es)")
    assert made == [batch.id]


def test_create_again(user: User) -> None:
    """Creating twice what is the same, on purpose, makes two batches."""
    first, second = (user.create(user.requests(1)) for _ in range(2))
    assert first.id != second.id


def test_cancel_ended_is_one_request(user: User) -> None:
    """The SDK repeats a 409 unless `x-should-retry` is `false`: cancelling an ended batch is exactly one HTTP request."""
    batch = user.run(user.requests(1))
    with proxy.serving(user.target.base_url) as way, user.through(way.base_url) as retrying:
        retrying.refused((400, 409), lambda: retrying.batches.cancel(batch.id))
    user.see(len(way.calls), "HTTP request(s)")
    assert len(way.calls) == 1, f"{len(way.calls)} HTTP requests"
