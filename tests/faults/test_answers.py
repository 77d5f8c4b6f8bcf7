"""F13, F14, F17, F18: a request that hangs or finds no memory, answers that are none, and answers in another order."""

import services
from clients import User
from openai.types import Batch
from payloads import numbered
from supervised import supervised

SHAPES = ["", "none", "text", "truncated", "empty", "object", "surrogate", "usage", "amount", "debt"]


def codes(user: User, batch: Batch) -> dict[str, str]:
    """Return the codes of the rows that failed."""
    return {row["custom_id"]: row["response"]["body"]["error"]["code"] for row in user.rows(batch.error_file_id)}


def texts(user: User, batch: Batch) -> dict[str, str]:
    """Return the answers of the others."""
    return {
        row["custom_id"]: row["response"]["body"]["choices"][0]["message"]["content"]
        for row in user.rows(batch.output_file_id)
    }


def test_answers_belong_to_their_requests_whatever_the_engine_does(checked: services.Stack) -> None:
    checked.api()
    checked.reconciler()
    checked.worker(PROMPTMILL_WORKER__REQUEST_TIMEOUT_SECONDS="8", **services.LONG_LEASES)
    user = User(checked)
    odd = {7: "HANG", **{13 + number: f"GARBAGE {shape}" for number, shape in enumerate(SHAPES)}}
    batch = user.wait(user.submit(numbered(300, lambda number: odd.get(number, f"REORDER {number}"))).id)
    assert batch.status == "completed"
    garbage = {f"row-{13 + number}": "engine_error" for number in range(len(SHAPES))}
    assert codes(user, batch) == {"row-7": "request_timeout", **garbage}
    assert texts(user, batch) == {f"row-{number}": f"REORDER {number}" for number in range(300) if number not in odd}


def test_a_request_for_which_there_is_no_memory_fails_alone(checked: services.Stack) -> None:
    checked.api()
    checked.reconciler()
    checked.know_model("scripted")
    user = User(checked)
    with supervised(checked) as worker:
        batch = user.submit(numbered(8, lambda number: "OOM" if number == 5 else f"SLOW 0.05 {number}"))
        batch = user.wait(batch.id, 240)
    assert batch.status == "completed"
    assert codes(user, batch) == {"row-5": "engine_crashed"}
    assert texts(user, batch) == {f"row-{number}": f"SLOW 0.05 {number}" for number in range(8) if number != 5}
    assert set(worker.ends) == {70}
