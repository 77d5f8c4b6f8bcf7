"""What is refused at the call, or fails its row where a server looks at the parameters only when they run"""

from collections.abc import Callable
from typing import Any

import pytest
from conformance_anthropic.user import Request, User, kind, unique


def without(request: Request, name: str) -> Request:
    return {**request, "params": {key: value for key, value in request["params"].items() if key != name}}


def refused_with(user: User, requests: list[Any], *places: str) -> None:
    """The call is refused with `BadRequestError`, whose words name the place."""
    error = user.refused(400, lambda: user.create(requests))
    assert (type(error).__name__, kind(error)) == ("BadRequestError", "invalid_request_error")
    assert all(place in error.message for place in places)


def test_no_requests(user: User) -> None:
    """`BadRequestError` that names `requests`."""
    refused_with(user, [], "requests")


def test_custom_id_twice(user: User) -> None:
    """`BadRequestError` that names `custom_id`; nothing is made."""
    before = [batch.id for batch in user.batches.list(limit=1).data]
    refused_with(user, [*user.requests(2), user.request("row-0")], "custom_id")
    assert [batch.id for batch in user.batches.list(limit=1).data] == before


@pytest.mark.parametrize("name", ["", "x" * 65, "a b", "Größe"])
def test_custom_id_invalid(user: User, name: str) -> None:
    """`BadRequestError` that names `requests.1.custom_id`: empty, 65 characters, a space, a letter with dots."""
    refused_with(user, [user.request("a"), user.request(name)], "requests.1.custom_id")


@pytest.mark.parametrize("name", ["custom_id", "params"])
def test_part_missing(user: User, name: str) -> None:
    """`BadRequestError` that names the place: `requests.1.custom_id`, `requests.1.params`."""
    request = user.request("b")
    del request[name]
    refused_with(user, [user.request("a"), request], f"requests.1.{name}")


@pytest.mark.parametrize("name", ["model", "messages", "max_tokens"])
def test_param_missing(user: User, name: str) -> None:
    """Refused with the place, `requests.1.params.max_tokens` say; or its row is `errored` and says which is missing."""
    requests = [user.request("a"), without(user.request("b"), name)]
    user.see(refused_or_errored(user, requests, "b", (400,), name))


def test_model_unknown(user: User) -> None:
    """`NotFoundError` that names the model and where it is; or its row is `errored` with `not_found_error`."""
    user.see(refused_or_errored(user, [user.request("a", model="no-such-model")], "a", (400, 404), "model"))


def refused_or_errored(user: User, requests: list[Request], name: str, status: tuple[int, ...], word: str) -> str:
    """Return how the server tells what is wrong with one request, with `word` in what it says."""
    made: list[Any] = []
    create: Callable[[], Any] = lambda: made.append(user.create(requests)) or made[0]  # type: ignore[func-returns-value]  # noqa: E731
    try:
        error = user.refused(status, create)
    except AssertionError:
        if not made:
            raise
    else:
        assert word in error.message
        return "at the call"
    result = user.results(user.wait(made[0]))[name]
    assert result.type == "errored" and word in result.error.error.message
    return "in its row"


def test_api_key_wrong(user: User) -> None:
    """`AuthenticationError` of type `authentication_error`."""
    error = user.refused(401, lambda: user.sdk.with_options(api_key=unique("wrong")).messages.batches.list().data)
    assert (type(error).__name__, kind(error)) == ("AuthenticationError", "authentication_error")


def test_another_tenant(user: User, other: User) -> None:
    """404, not 403, for all that can be done with another tenant's batch; no list has it, and it is still there."""
    batch = user.run(user.requests(1))
    for call in (other.batches.retrieve, other.batches.results, other.batches.cancel, other.batches.delete):
        other.refused(404, lambda call=call: call(batch.id))  # type: ignore[misc]
    other.refused(404, lambda: other.sdk.get(f"/v1/messages/batches/{batch.id}/results", cast_to=object))
    assert batch.id not in {each.id for each in other.batches.list(limit=100).data}
    other.refused((400, 404), lambda: other.batches.list(after_id=batch.id).data)
    assert user.batches.retrieve(batch.id) == batch


def test_most_requests(large: None, user: User) -> None:
    """As many requests as a batch may have (`--max-requests`) are accepted and counted; one more is refused (400, 413)."""
    most = user.target.max_requests
    user.refused((400, 413), lambda: user.create(user.requests(most + 1)))
    batch = user.create(user.requests(most))
    assert sum(batch.request_counts.model_dump().values()) == most
    batch = user.wait(user.batches.cancel(batch.id))
    assert batch.request_counts.succeeded + batch.request_counts.canceled == most
