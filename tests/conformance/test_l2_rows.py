"""L2: one request fails, its neighbours do not notice"""

from conformance.user import User


def test_row_succeeds(user: User) -> None:
    """Output file: `id` `batch_req_…`, `custom_id`, `response` {200, `request_id`, `body` as of the sync call}, `error` null."""
    batch = user.run(user.make.data(1))
    (row,) = user.rows(batch.output_file_id)
    assert row["id"].startswith("batch_req_")
    assert (row["custom_id"], row["error"]) == ("row-0", None)
    assert row["response"]["status_code"] == 200
    assert isinstance(row["response"]["request_id"], str)
    body = row["response"]["body"]
    assert isinstance(body, dict), f"response.body is a {type(body).__name__}"
    assert body["object"] == "chat.completion"
    assert isinstance(body["choices"][0]["message"]["content"], str)
    assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] + body["usage"]["completion_tokens"]


def test_row_refused(user: User) -> None:
    """Error file: `response` {4xx, `request_id`, `body.error` {message, type, param, code}}, the row's own `error` null."""
    batch = user.run([user.make.row("bad", **user.target.bad_body)])
    (row,) = user.rows(batch.error_file_id)
    assert (row["custom_id"], row["error"]) == ("bad", None)
    assert row["id"].startswith("batch_req_")
    response = row["response"]
    assert 400 <= response["status_code"] < 500
    assert isinstance(response["request_id"], str)
    assert isinstance(response["body"], dict), f"response.body is a {type(response['body']).__name__}"
    assert {"message", "type", "param", "code"} <= set(response["body"]["error"])
    user.see("row:", response["status_code"], response["body"]["error"]["code"])


def test_mixed_rows(user: User) -> None:
    """`completed`; what failed is in the error file only, the rest in the output file only; the counts say so."""
    batch = user.run([*user.make.rows(4), user.make.row("bad", **user.target.bad_body)])
    assert {row["custom_id"] for row in user.rows(batch.output_file_id)} == {f"row-{number}" for number in range(4)}
    assert [row["custom_id"] for row in user.rows(batch.error_file_id)] == ["bad"]
    assert batch.request_counts and batch.request_counts.to_dict() == {"total": 5, "completed": 4, "failed": 1}


def test_all_rows_fail(user: User) -> None:
    """`completed`, not `failed`; `output_file_id` null, `error_file_id` set."""
    batch = user.run([user.make.row(name, **user.target.bad_body) for name in "abc"])
    assert batch.output_file_id is None
    assert {row["custom_id"] for row in user.rows(batch.error_file_id)} == set("abc")
    assert batch.request_counts and batch.request_counts.to_dict() == {"total": 3, "completed": 0, "failed": 3}


def test_no_row_fails(user: User) -> None:
    """`completed`; `error_file_id` null."""
    batch = user.run(user.make.data(2))
    assert batch.error_file_id is None
    assert batch.output_file_id
