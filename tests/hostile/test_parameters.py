"""F85, F88, F91: parameters that are unknown, endless or dangerous cost their row, and are named."""

from typing import Any

import msgspec
import pytest
from payloads import request

from jobs.errors import RequestRejected
from workers.engines import parameters
from workers.engines.parameters import ChatParameters, CompletionParameters, Sampling

MESSAGES = [{"role": "user", "content": "hi"}]


def rejection(kind: type[Sampling] = ChatParameters, **body: Any) -> RequestRejected:
    prompt: dict[str, Any] = {"messages": MESSAGES} if kind is ChatParameters else {"prompt": "hi"}
    with pytest.raises(RequestRejected) as caught:
        parameters.check(kind, {"model": "m", **prompt, **body})
    assert len(caught.value.message) < 1_000, "an error is no copy of what was sent"
    assert len(caught.value.param or "") <= 200
    return caught.value


# What engines are known to have died, hung or leaked of; each by itself, with a value that looks harmless.
UNKNOWN = [
    *("grammar", "chat_template", "chat_template_kwargs", "prompt_embeds", "mm_processor_kwargs", "media_io_kwargs"),
    *("guided_json", "guided_regex", "structured_outputs", "prompt_logprobs", "min_tokens", "allowed_token_ids"),
    *("cache_salt", "priority", "best_of", "use_beam_search", "ignore_eos", "logits_processors", "bad_words"),
    *("tools", "tool_choice", "functions", "logit_bias", "stream_options", "audio", "modalities", "service_tier"),
    *(
        "id_slot",
        "cache_prompt",
        "n_predict",
        "samplers",
        "lora",
        "speculative",
        "reasoning_format",
        "t_max_predict_ms",
    ),
    *("__proto__", "constructor", "", " temperature", "Temperature", "x" * 10_000, "a.b", "\x00"),
]


@pytest.mark.parametrize("name", UNKNOWN)
def test_f85_an_unknown_parameter_is_refused_by_name(name: str) -> None:
    for kind in (ChatParameters, CompletionParameters):
        error = rejection(kind, **{name: 1})
        assert error.code == "unsupported_parameter"
        assert (error.param or "") == name[:200]


VALUES: list[tuple[str, Any]] = [
    *(("temperature", value) for value in (float("nan"), float("inf"), -1, 1e308, 2.1, "1", True, [1])),
    *(("top_p", value) for value in (float("nan"), -0.1, 0, 1.1, "1")),
    *(("n", value) for value in (10**9, 0, -1, 17, 1.5, 2**70, True)),
    *(("max_tokens", value) for value in (10**12, 0, -1, 2**63, 2**70, 1.5, "5")),
    *(("max_completion_tokens", value) for value in (10**12, 0, -1)),
    *(("top_logprobs", value) for value in (10**6, -1, 21)),
    *(("logprobs", value) for value in (10**6, "yes", 5)),
    *(("stop", value) for value in (["x"] * 10_000, ["x"] * 5, "", [""], "x" * 2_000, [None], 5)),
    *(("seed", value) for value in (-1, 2**32, 2**70, 1.5, "7")),
    *(("presence_penalty", value) for value in (-2.1, 2.1, float("inf"))),
    *(("frequency_penalty", value) for value in (-2.1, 2.1, float("nan"))),
    ("logit_bias", {str(token): 100 for token in range(100_000)}),
    ("min_tokens", 10**12),
    ("metadata", {"a": 1}),
    ("metadata", [["a", "b"]]),
    ("user", 5),
    ("messages", []),
    ("messages", "hi"),
    ("messages", [{"role": "user", "content": None}]),
    ("messages", [{"role": "user", "content": "x", "tool_calls": []}]),
    ("messages", [{"role": "tool", "content": "x"}]),
    ("response_format", {"type": "grammar", "grammar": "root ::= root"}),
    ("response_format", {"type": "json_schema", "json_schema": {"name": "x", "schema": ""}}),
    ("response_format", {"type": "json_schema", "json_schema": {"name": "x", "schema": False}}),
    ("response_format", {"type": "json_schema", "json_schema": {"name": "x", "schema": [], "grammar": "x"}}),
]


@pytest.mark.parametrize(("name", "value"), VALUES)
def test_f88_a_value_out_of_bounds_is_refused_by_name(name: str, value: Any) -> None:
    error = rejection(**{name: value})
    assert error.status_code == 400
    assert (error.param or "").split(".")[0] == name


@pytest.mark.parametrize("prompt", [[1, 2], [[1]], [-1], [10**9], ["a", "b"], "", None, 5, {"a": 1}])
def test_f88_a_prompt_is_one_text(prompt: Any) -> None:
    """Token ids of -1 and beyond the vocabulary, and lists that fan out, have crashed engines."""
    assert (rejection(CompletionParameters, prompt=prompt).param or "").split(".")[0] == "prompt"


URLS = [
    *("http://127.0.0.1/", "http://169.254.169.254/latest/meta-data", "http://[::1]/", "http://0x7f000001/"),
    *(
        "http://ok@evil.example/",
        "http://ok\\@evil.example/",
        "file:///etc/passwd",
        "gopher://127.0.0.1:6379/_FLUSHALL",
    ),
    *("https://example.com/a.png", "data:image/gif;base64," + "A" * 100_000, "data:,x", ""),
]
PARTS = [
    *({"type": "image_url", "image_url": {"url": url}} for url in URLS),
    *({"type": "image_url", "image_url": url} for url in URLS),
    {"type": "image_url", "image_url": {"file_id": "file-1"}},
    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "uuid": "x"}},
    {"type": "image", "image": "x"},
    {"type": "image_embeds", "image_embeds": "x"},
    {"type": "input_audio", "input_audio": {"data": "x", "format": "wav"}},
    {"type": "video_url", "video_url": {"url": "http://127.0.0.1/"}},
    {"type": "file", "file": {"file_data": "x"}},
    {"type": "text", "text": "hi", "uuid": "x"},
    {"type": "text", "text": "hi", "image_url": {"url": "http://127.0.0.1/"}},
]


@pytest.mark.parametrize("part", PARTS)
def test_f91_an_engine_gets_text_and_images_that_were_checked_and_nothing_else(part: dict[str, Any]) -> None:
    """What it would fetch by itself does not get to it: this is the last look, behind `workers.images`."""
    messages = [{"role": "user", "content": [{"type": "text", "text": "what is this?"}, part]}]
    assert (rejection(messages=messages).param or "").startswith("messages.0.content.1.")


def test_an_engine_gets_images_in_the_users_messages_only() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}}
    user = {"role": "user", "content": [image]}
    assert parameters.check(ChatParameters, {"model": "m", "messages": [user]})
    for role in ("system", "developer", "assistant"):
        assert rejection(messages=[{"role": role, "content": [image]}, user]).param == "messages.0.content"


def test_a_request_of_everyday_life_is_taken() -> None:
    body = msgspec.json.decode(msgspec.json.encode(request("a", temperature=0, n=2, stop=["a"], seed=1)["body"]))
    assert parameters.check(ChatParameters, body).n == 2
