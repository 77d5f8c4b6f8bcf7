"""Results"""

import anthropic
from conformance_anthropic.user import User, shape, text


def test_succeeded(user: User) -> None:
    """`succeeded`, with a message as of the synchronous call: `id`, `role`, `content`, `model`, `stop_reason`, `usage`."""
    batch = user.run(user.requests(1))
    assert batch.results_url and batch.results_url.endswith(f"/{batch.id}/results")
    message = user.results(batch)["row-0"].message
    assert (message.type, message.role, message.model) == ("message", "assistant", user.target.model)
    assert message.id and message.content[0].type == "text"
    assert message.stop_reason in ("end_turn", "max_tokens", "stop_sequence")
    assert type(message.usage.input_tokens) is int and type(message.usage.output_tokens) is int


def test_errored(user: User) -> None:
    """`errored`, with `{type: "error", error: {type: "invalid_request_error", message}}`; its neighbours do not notice."""
    batch = user.run([*user.requests(2), user.request("bad", **user.target.bad_body)])
    found = user.results(batch)
    error = shape(found.pop("bad"))
    user.see("row:", error["error"]["error"]["type"], error["error"]["error"]["message"])
    assert (error["type"], error["error"]["type"]) == ("errored", "error")
    assert error["error"]["error"]["type"] == "invalid_request_error"
    assert error["error"]["error"]["message"]
    assert all(text(result) for result in found.values())


def test_all_errored(user: User) -> None:
    """A batch of which all requests fail ends like any other, with a result for each."""
    batch = user.run([user.request(f"bad-{number}", **user.target.bad_body) for number in range(3)])
    assert {result.type for result in user.results(batch).values()} == {"errored"}


def test_canceled(user: User) -> None:
    """`canceled`, and nothing else in the result."""
    batch = user.create([user.request("slow", user.target.slow_prompt, max_tokens=1_000)])
    batch = user.wait(user.batches.cancel(batch.id))
    assert shape(user.results(batch)["slow"]) == {"type": "canceled"}


def test_every_custom_id_comes_back_once(user: User) -> None:
    """The custom_ids of the results are those of the requests, each once."""
    names = ["a", "A", "0", "-_-", "x" * 64, *(f"row-{number}" for number in range(200))]
    batch = user.run([user.request(name) for name in names])
    assert set(user.results(batch)) == set(names)


def test_before_the_end(user: User) -> None:
    """No results before the end: the SDK, which finds no `results_url`, says so, and by hand it is 400 or 404."""
    batch = user.create(user.slow_requests())
    path = f"/v1/messages/batches/{batch.id}/results"
    user.refused((400, 404), lambda: user.sdk.get(path, cast_to=object))
    try:
        user.batches.results(batch.id)
    except anthropic.AnthropicError as error:
        user.see(type(error).__name__)
    else:
        raise AssertionError("there are results")
    finally:
        user.batches.cancel(batch.id)


def test_text_of_any_script(user: User) -> None:
    """1,000 requests with prompts in many scripts, and of escapes and line separators: each is taken as it is."""
    texts = ["Größe", "行列", "עברית", "\U0001f600", '"\\\n\t', "\u2028\u2029\x85", "e\u0301", "\x00\x1f"]
    batch = user.run([user.request(f"row-{number}", texts[number % len(texts)]) for number in range(1_000)])
    found = user.results(batch)
    assert len(found) == 1_000
    assert {result.type for result in found.values()} == {"succeeded"}
