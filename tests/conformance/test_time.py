"""TIME: what happens when time passes; these set the server's clock forward and come last"""

from collections.abc import Callable

from conformance.parts import begin, part
from conformance.user import User

HOUR, DAY = 3_600, 86_400
Clock = Callable[[int], None]


def test_file_expires(user: User, clock: Clock) -> None:
    """404 once `expires_at` has passed."""
    file = user.upload(user.make.data(1), expires_after={"anchor": "created_at", "seconds": HOUR})
    clock(HOUR + 60)
    user.refused(404, lambda: user.sdk.files.retrieve(file.id))
    user.refused(404, lambda: user.sdk.files.content(file.id))


def test_upload_expires(user: User, clock: Clock) -> None:
    """A part sent after an hour is refused with 400."""
    upload = begin(user, 10)
    clock(HOUR + 60)
    user.refused(400, lambda: part(user, upload, b"0123456789"))


def test_batch_expires(user: User, clock: Clock) -> None:
    """`expired`; what was done is in the output file, the rest in the error file: `response` null, `error.code` `batch_expired`."""
    batch = user.submit(user.slow_data())
    user.wait_for_a_row(batch)
    clock(DAY + 60)
    batch = user.wait(batch)
    user.see(batch.status)
    assert batch.status == "expired"
    assert isinstance(batch.expired_at, int)
    rest = [row for row in user.rows(batch.error_file_id) if row["response"] is None]
    assert {row["error"]["code"] for row in rest} == {"batch_expired"}
    assert all(
        row["error"]["message"] == "This request could not be executed before the completion window expired."
        for row in rest
    )
    assert user.rows(batch.output_file_id), "results are kept"
    assert len(user.results(batch)) == 104
