"""SDK: tenants"""

from conformance.user import User


def test_batch_of_another_tenant(user: User, other: User) -> None:
    """404, not 403, for reading and cancelling; no list has it."""
    batch = user.submit(user.make.data(1))
    for call in (other.sdk.batches.retrieve, other.sdk.batches.cancel):
        other.refused(404, lambda call=call: call(batch.id))  # type: ignore[misc]
    assert batch.id not in {each.id for each in other.sdk.batches.list(limit=100).data}


def test_file_of_another_tenant(user: User, other: User) -> None:
    """404, not 403, for reading, downloading and deleting; no list has it; it is still there."""
    file = user.upload(user.make.data(1))
    for call in (other.sdk.files.retrieve, other.sdk.files.content, other.sdk.files.delete):
        other.refused(404, lambda call=call: call(file.id))  # type: ignore[misc]
    assert file.id not in {each.id for each in other.sdk.files.list(limit=100).data}
    assert user.sdk.files.retrieve(file.id).id == file.id


def test_output_of_another_tenant(user: User, other: User) -> None:
    """404 for the output file of another tenant's batch."""
    batch = user.run(user.make.data(1))
    assert batch.output_file_id
    other.refused(404, lambda: other.sdk.files.content(batch.output_file_id or ""))


def test_input_of_another_tenant(user: User, other: User) -> None:
    """A batch on another tenant's file fails as on a missing one: `invalid_request`, param `file_id`."""
    file = user.upload(user.make.data(1))
    (problem,) = other.problems_of(other.create(file.id))
    assert (problem["code"], problem["param"], problem["line"]) == ("invalid_request", "file_id", None)
