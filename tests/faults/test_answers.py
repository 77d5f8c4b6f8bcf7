"""F13, F17, F18: a request that hangs while others go on, answers that are none, and answers in another order."""

import services
from clients import User
from payloads import numbered


def test_answers_belong_to_their_requests_whatever_the_engine_does(checked: services.Stack) -> None:
    checked.api()
    checked.reconciler()
    checked.worker(PROMPTMILL_WORKER__REQUEST_TIMEOUT_SECONDS="8", **services.LONG_LEASES)
    user = User(checked)
    odd = {7: "HANG", 13: "GARBAGE"}
    batch = user.wait(user.submit(numbered(300, lambda number: odd.get(number, f"REORDER {number}"))).id)
    assert batch.status == "completed"
    codes = {row["custom_id"]: row["response"]["body"]["error"]["code"] for row in user.rows(batch.error_file_id)}
    assert codes == {"row-7": "request_timeout", "row-13": "engine_error"}
    answers = {
        row["custom_id"]: row["response"]["body"]["choices"][0]["message"]["content"]
        for row in user.rows(batch.output_file_id)
    }
    assert answers == {f"row-{number}": f"REORDER {number}" for number in range(300) if number not in odd}
