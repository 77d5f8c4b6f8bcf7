"""One worker that serves a base model and an adapter, and a batch for both, through real processes."""

import json

import invariants
import services
from clients import User
from payloads import jsonl, request

MODELS = ["base", "base-french"]


def model_of(number: int) -> str:
    """Return the model of a row: the adapter's for two rows of five."""
    return MODELS[number % 5 in (1, 4)]


def test_a_batch_for_two_models_of_one_worker(stack: services.Stack) -> None:
    stack.api()
    stack.reconciler()
    user = User(stack)
    data = jsonl(request(f"row-{number}", f"text {number}", model=model_of(number)) for number in range(1_000))
    refused = user.submit(data)
    assert refused.errors and refused.errors.data
    assert [(each.code, each.param) for each in refused.errors.data] == [("model_mismatch", "body.model")] * 400
    stack.worker(PROMPTMILL_WORKER__SCRIPTED_MODELS=json.dumps(MODELS))
    batch = user.wait(user.submit(data).id)
    assert (batch.status, batch.model, batch.error_file_id) == ("completed", None, None)
    rows = user.rows(batch.output_file_id)
    assert [row["custom_id"] for row in rows] == [f"row-{number}" for number in range(1_000)], "input order"
    assert [row["response"]["body"]["model"] for row in rows] == [model_of(number) for number in range(1_000)]
    engine = stack.engine()
    invariants.check(engine)
    engine.dispose()
