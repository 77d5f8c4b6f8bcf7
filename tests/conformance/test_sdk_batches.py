"""SDK: batches"""

import json

from conformance.lines import CHAT, jsonl
from conformance.user import User, shape
from openai.types import Batch

FIELDS = {
    "id", "object", "endpoint", "model", "errors", "input_file_id", "completion_window", "status", "output_file_id",
    "error_file_id", "created_at", "in_progress_at", "expires_at", "finalizing_at", "completed_at", "failed_at",
    "expired_at", "cancelling_at", "cancelled_at", "request_counts", "usage", "metadata",
}  # fmt: skip
DAY = 86_400
MAX_ID_CHARS = 64


def test_happy_path(user: User) -> None:
    """A batch runs to `completed`; metadata comes back; `output_file_id` names a file of purpose `batch_output`."""
    batch = user.run(user.make.data(3), metadata={"team": "a"})
    assert (batch.object, batch.endpoint, batch.completion_window) == ("batch", CHAT, "24h")
    assert batch.metadata == {"team": "a"}
    assert batch.errors is None
    assert batch.output_file_id
    file = user.sdk.files.retrieve(batch.output_file_id)
    assert (file.object, file.purpose, file.status) == ("file", "batch_output", "processed")
    assert file.bytes == len(user.sdk.files.content(file.id).content)
    assert user.sdk.files.content(batch.input_file_id).content == user.make.data(3)


def test_all_fields_are_there(user: User) -> None:
    """A batch has every field of the contract, null when unset: at creation, at the end, in the list."""
    created = user.submit(user.make.data(1))
    listed = next(batch for batch in user.sdk.batches.list() if batch.id == created.id)
    for batch in (created, user.wait(created), listed):
        assert FIELDS - set(shape(batch)) == set()
    user.see(len(FIELDS), "fields")


def test_times(user: User) -> None:
    """Integer Unix seconds in order; `expires_at` is the deadline, 24 hours after `created_at`."""
    batch = user.run(user.make.data(1))
    times = [batch.created_at, batch.in_progress_at, batch.finalizing_at, batch.completed_at]
    assert all(type(moment) is int for moment in times), times
    assert times == sorted(times, key=lambda moment: moment or 0)
    assert batch.expires_at == batch.created_at + DAY


def test_ids(user: User) -> None:
    """`batch_…` and `file-…`, 64 characters at most."""
    batch = user.run(user.make.data(1))
    assert batch.id.startswith("batch_")
    assert batch.input_file_id.startswith("file-")
    assert batch.output_file_id and batch.output_file_id.startswith("file-")
    assert max(map(len, (batch.id, batch.input_file_id, batch.output_file_id))) <= MAX_ID_CHARS


def test_every_custom_id_comes_back_once(user: User) -> None:
    """The custom_ids of the input are those of output and error file together, each once; the counts add up."""
    rows = [*user.make.rows(20), *(user.make.row(f"bad-{number}", **user.target.bad_body) for number in range(5))]
    batch = user.run(rows)
    assert set(user.results(batch)) == {row["custom_id"] for row in rows}
    counts = batch.request_counts
    assert counts and counts.total == counts.completed + counts.failed == 25


def test_usage_is_the_sum_of_the_rows(user: User) -> None:
    """`usage` has its five fields; input, output and total tokens are the sums over the rows."""
    batch = user.run(user.make.data(5))
    usage = shape(batch)["usage"]
    each = [row["response"]["body"]["usage"] for row in user.rows(batch.output_file_id)]
    assert usage["input_tokens"] == sum(row["prompt_tokens"] for row in each)
    assert usage["output_tokens"] == sum(row["completion_tokens"] for row in each)
    assert usage["total_tokens"] == sum(row["total_tokens"] for row in each)
    assert type(usage["input_tokens_details"]["cached_tokens"]) is int
    assert type(usage["output_tokens_details"]["reasoning_tokens"]) is int


def test_output_expires_after(user: User) -> None:
    """The output file's `expires_at` is its own `created_at` plus what was asked."""
    batch = user.run(user.make.data(1), output_expires_after={"anchor": "created_at", "seconds": 7_200})
    assert batch.output_file_id
    file = user.sdk.files.retrieve(batch.output_file_id)
    assert file.expires_at == file.created_at + 7_200


def check_all_run(user: User, data: bytes, names: set[str]) -> None:
    assert set(user.results(user.run(data))) == names


def test_blank_lines_are_ignored(user: User) -> None:
    """Blank lines between and after requests are no requests."""
    first, second = (jsonl([row]) for row in user.make.rows(2))
    check_all_run(user, first + b"\n\n" + second + b"\n  \n", {"row-0", "row-1"})


def test_crlf(user: User) -> None:
    """Lines may end in CRLF."""
    check_all_run(user, user.make.data(2).replace(b"\n", b"\r\n"), {"row-0", "row-1"})


def test_byte_order_mark(user: User) -> None:
    """The file may begin with a UTF-8 byte order mark."""
    check_all_run(user, b"\xef\xbb\xbf" + user.make.data(2), {"row-0", "row-1"})


def test_no_newline_at_the_end(user: User) -> None:
    """The last line needs no newline."""
    check_all_run(user, user.make.data(2).rstrip(b"\n"), {"row-0", "row-1"})


def test_custom_id_unicode(user: User) -> None:
    """A custom_id of any script comes back as it was, whether sent as UTF-8 or escaped."""
    names = ["Größe-1", "行-2", "\U0001f600-3", "a b/c?d"]
    rows = [user.make.row(name) for name in names]
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows[:2]).encode() + jsonl(rows[2:])
    check_all_run(user, data, set(names))


def check_cancelled(user: User, batch: Batch) -> Batch:
    batch = user.wait(batch)
    user.see(batch.status)
    assert batch.status == "cancelled"
    assert isinstance(batch.cancelling_at, int) and isinstance(batch.cancelled_at, int)
    return batch


def test_cancel_at_once(user: User) -> None:
    """In `validating`, or soon after: `cancelling` or `cancelled` is answered, and it ends as `cancelled`."""
    batch = user.submit(user.slow_data())
    answer = user.sdk.batches.cancel(batch.id)
    assert answer.status in ("cancelling", "cancelled")
    check_cancelled(user, answer)


def test_cancel_in_progress_keeps_results(user: User) -> None:
    """What was done is in the output file; every custom_id is in one of the files, once; the counts add up."""
    batch = user.submit(user.slow_data())
    batch = user.wait_for_a_row(batch)
    assert batch.status == "in_progress"
    batch = check_cancelled(user, user.sdk.batches.cancel(batch.id))
    output = user.rows(batch.output_file_id)
    counts = batch.request_counts
    assert output, "results are kept"
    assert counts and (counts.completed, counts.total) == (len(output), 104)
    assert counts.completed + counts.failed == counts.total
    assert len(user.results(batch)) == counts.total
    never_ran = [row for row in user.rows(batch.error_file_id) if row["response"] is None]
    assert all(row["error"]["code"] and row["error"]["message"] for row in never_ran)


def test_cancel_twice(user: User) -> None:
    """Cancelling a batch in `cancelling`, or in `cancelled`, is answered with 200."""
    batch = user.submit(user.slow_data())
    user.sdk.batches.cancel(batch.id)
    assert user.sdk.batches.cancel(batch.id).status in ("cancelling", "cancelled")
    batch = check_cancelled(user, batch)
    assert user.sdk.batches.cancel(batch.id).status == "cancelled"


def test_50000_requests(large: None, user: User) -> None:
    """50,000 requests are accepted; cancelled at once, the batch ends, and all of them are counted."""
    batch = user.submit(user.make.data(50_000))
    batch = user.wait_for(batch, lambda found: found.status != "validating", "to be validated")
    assert batch.status == "in_progress", batch.errors
    batch = check_cancelled(user, user.sdk.batches.cancel(batch.id))
    counts = batch.request_counts
    assert counts and counts.total == counts.completed + counts.failed == 50_000
