"""What reaches vLLM: one test for each advisory (docs/vllm-advisories.md names them), and what is built for it."""

import json
from typing import Any

import pytest

from jobs.errors import RequestRejected
from workers.engines import vllm_parameters
from workers.engines.vllm_parameters import Kind, Rules, VllmChat, VllmCompletion, VllmEmbedding

USER = {"role": "user", "content": "hi"}
STRING = {"type": "string"}
NEEDED: dict[type, dict[str, Any]] = {
    VllmChat: {"messages": [USER]},
    VllmCompletion: {"prompt": "hi"},
    VllmEmbedding: {"input": "hi"},
}
KINDS = list(NEEDED)
GENERATING = [VllmChat, VllmCompletion]
EVERYTHING = Rules(regex=True, grammar=True, tools=True, vocabulary=1_000)
GEMMA = Rules(tools=True, vocabulary=1_000, placeholders={255: "<start_of_image>", 262: "<image_soft_token>"})


def asked(kind: type[Kind], rules: Rules = EVERYTHING, **body: Any) -> Kind:
    return vllm_parameters.check(kind, {"model": "m", **NEEDED[kind], **body}, rules)


def rejection(kind: type[Kind], rules: Rules = EVERYTHING, **body: Any) -> RequestRejected:
    with pytest.raises(RequestRejected) as caught:
        asked(kind, rules, **body)
    error = caught.value
    assert error.status_code == 400
    assert len(error.message) < 1_000, "an error is no copy of what was sent"
    assert len(error.param or "") <= 200
    return error


def tool(name: str = "f", **function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **function}}


# With a value that vLLM itself would take.
REFUSED: dict[str, Any] = {
    "prompt_embeds": "AAAA",
    "prompt_logprobs": 1,
    "prompt_logprob_token_ids": [[1]],
    "logprob_token_ids": [1],
    "allowed_token_ids": [1],
    "logit_bias": {"1": 100},
    "bad_words": ["x"],
    "stop_token_ids": [1],
    "include_stop_str_in_output": True,
    "spaces_between_special_tokens": False,
    "add_special_tokens": False,
    "add_generation_prompt": False,
    "continue_final_message": True,
    "chat_template": "{% for a in range(10**9) %}x{% endfor %}",
    "mm_processor_kwargs": {"num_crops": 10_000},
    "media_io_kwargs": {"video": {"num_frames": 10_000}},
    "mm_payload": "none",
    "return_mm_kwargs": True,
    "cache_salt": "x",
    "priority": -1,
    "request_id": "x",
    "session_id": "x",
    "kv_transfer_params": {"do_remote_prefill": True},
    "ec_transfer_params": {},
    "vllm_xargs": {"a": 1},
    "extra_args": {"a": 1},
    "truncate_prompt_tokens": 1,
    "truncation_side": "left",
    "use_beam_search": True,
    "length_penalty": 2.0,
    "early_stopping": True,
    "best_of": 100,
    "return_token_ids": True,
    "return_tokens_as_token_ids": True,
    "return_prompt_text": True,
    "return_token_offsets": True,
    "return_weight_versions": True,
    "return_assistant_tokens_mask": True,
    "routed_experts_prompt_start": 1,
    "repetition_detection": {"max_pattern_size": 20, "min_count": 2},
    "thinking_token_budget": 5,
    "watermarking": True,
    "stream_interval": 1,
    "stream_options": {"include_usage": True},
    "structural_tag": "{}",
    "guided_json": {},
    "guided_regex": "a",
    "guided_decoding_backend": "outlines",
    "lora_request": {"lora_path": "/x"},
    "suffix": "x",
    "audio": {"voice": "x"},
    "modalities": ["audio"],
    "functions": [],
    "function_call": "auto",
    "service_tier": "auto",
    "use_activation": False,
    "normalize": False,
    "task": "embed",
    "padding": "max_length",
    "instruction": "x",
    "max_tokens_per_doc": 1,
    "embed_dtype": "float16",
    "endianness": "big",
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("kind", KINDS)
def test_whatever_is_not_in_the_list_is_refused_by_name(kind: type[Kind], name: str) -> None:
    error = rejection(kind, **{name: REFUSED[name]})
    assert (error.code, error.param) == ("unsupported_parameter", name)


@pytest.mark.parametrize("kind", [VllmChat, VllmCompletion, VllmEmbedding])
def test_documents_belong_to_scores_only(kind: type[Kind]) -> None:
    assert rejection(kind, documents=[{"title": "a", "text": "b"}]).code == "unsupported_parameter"


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_refused_reaches_no_request(kind: type[Kind]) -> None:
    payload = vllm_parameters.request(asked(kind))
    assert payload.keys() == {"model", *NEEDED[kind]}


@pytest.mark.parametrize(
    "value",
    [
        {"chat_template": "x"},
        {"enable_thinking": "yes"},
        {"enable_thinking": {"a": 1}},
        {"thinking": 1},
        {"tools": []},
        {"xml_tool_call": True},
        5,
    ],
)
def test_a_template_gets_named_booleans_and_nothing_else(value: Any) -> None:
    """CVE-2025-61620, CVE-2025-62426: templates have no bound on what they work."""
    assert (rejection(VllmChat, chat_template_kwargs=value).param or "").startswith("chat_template_kwargs")
    taken = asked(VllmChat, chat_template_kwargs={"enable_thinking": False})
    assert vllm_parameters.request(taken)["chat_template_kwargs"] == {"enable_thinking": False}


PARTS: list[dict[str, Any]] = [
    {"type": "image_embeds", "image_embeds": "AAAA"},
    {"type": "audio_embeds", "audio_embeds": "AAAA"},
    {"type": "prompt_embeds", "data": "AAAA"},
    {"type": "image_pil", "image_pil": "x"},
    {"type": "audio_url", "audio_url": {"url": "http://127.0.0.1/"}},
    {"type": "video_url", "video_url": {"url": "http://127.0.0.1/"}},
    {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
    {"type": "file", "file": {"file_data": "AAAA"}},
    {"type": "text", "text": "hi", "uuid": "x"},
    {"type": "refusal", "refusal": "x"},
    {"type": "thinking", "thinking": "x"},
    {"type": "tool_reference", "name": "x"},
    {"image_url": "http://127.0.0.1/"},
]


@pytest.mark.parametrize("role", ["user", "system", "assistant", "tool"])
@pytest.mark.parametrize("part", PARTS)
def test_parts_that_are_embeddings_audio_video_files_or_have_a_uuid_are_refused(
    role: str, part: dict[str, Any]
) -> None:
    """CVE-2025-62372, CVE-2025-62164, CVE-2026-22778, CVE-2026-34755, CVE-2026-54233, GHSA-p92p."""
    turn = {"role": role, "content": [part]} | ({"tool_call_id": "c"} if role == "tool" else {})
    error = rejection(VllmChat, messages=[USER, turn])
    assert (error.param or "").startswith("messages.1.content.0")


@pytest.mark.parametrize("url", ["http://127.0.0.1/", "http://ok@evil/", "file:///etc/passwd", "ftp://a/b"])
def test_nothing_is_fetched_for_a_message(url: str) -> None:
    """GHSA-3f6c-7fw2-ppm4, CVE-2026-24779, CVE-2026-25960, CVE-2026-34753."""
    content = [{"type": "image_url", "image_url": {"url": url}}]
    assert (rejection(VllmChat, messages=[{"role": "user", "content": content}]).param or "").startswith("messages.0")


VALUES: list[tuple[str, Any]] = [
    *(("temperature", value) for value in (float("nan"), float("inf"), -1, 2.1, "1")),
    *(("n", value) for value in (17, 10**9, 0)),
    *(("min_tokens", value) for value in (11, 10**12, -1)),
    *(("top_k", value) for value in (-2, 2**31, 1.5)),
    *(("min_p", value) for value in (-0.1, 1.1, float("nan"))),
    *(("repetition_penalty", value) for value in (0, 1e-30, 11, float("inf"), float("nan"))),
    *(("presence_penalty", value) for value in (2.1, float("nan"))),
    *(("max_tokens", value) for value in (0, 10**12)),
    *(("logprobs", value) for value in (6, -1, 10**6)),
    *(("stop", value) for value in (["x"] * 5, "")),
    *(("ignore_eos", value) for value in (1, "true")),
    *(("skip_special_tokens", value) for value in (0, "no")),
    ("seed", 2**63),
    ("stream", True),
]


@pytest.mark.parametrize("kind", GENERATING)
@pytest.mark.parametrize(("name", "value"), VALUES)
def test_a_value_out_of_bounds_is_refused(kind: type[Kind], name: str, value: Any) -> None:
    """GHSA-4xqp (min_tokens), CVE-2026-34756 (n), CVE-2026-54235 (temperature), vllm#34643 (logprobs)."""
    error = rejection(kind, **{"max_tokens": 10, name: value})
    assert (error.param or "").split(".")[0] == name


@pytest.mark.parametrize("kind", GENERATING)
def test_min_tokens_needs_a_limit(kind: type[Kind]) -> None:
    assert rejection(kind, min_tokens=1).param == "min_tokens"
    assert vllm_parameters.request(asked(kind, min_tokens=10, max_tokens=10))["min_tokens"] == 10


def test_min_tokens_is_held_against_the_limit_that_holds() -> None:
    assert rejection(VllmChat, min_tokens=6, max_tokens=10, max_completion_tokens=5).param == "min_tokens"


@pytest.mark.parametrize("value", [21, -1, 10**6])
def test_top_logprobs_are_at_most_twenty(value: int) -> None:
    assert rejection(VllmChat, logprobs=True, top_logprobs=value).param == "top_logprobs"
    assert asked(VllmChat, logprobs=True, top_logprobs=20).top_logprobs == 20


@pytest.mark.parametrize("kind", GENERATING)
def test_several_choices_at_temperature_zero_are_refused(kind: type[Kind]) -> None:
    assert rejection(kind, n=2, temperature=0).param == "n"


@pytest.mark.parametrize("prompt", [[1, 2], [[1]], [-1], [10**9], ["a", "b"], "", 5])
def test_a_prompt_is_one_text(prompt: Any) -> None:
    """GHSA-25q3 (negative token ids), GHSA-87x5 (lists that fan out)."""
    assert (rejection(VllmCompletion, prompt=prompt).param or "").startswith("prompt")


@pytest.mark.parametrize("tokens", [[-1], [1_000], [2**40], [[5], [1_000]], [255]])
def test_token_ids_of_an_input_are_in_the_vocabulary(tokens: Any) -> None:
    """GHSA-25q3. An id may not stand for an image either."""
    assert (rejection(VllmEmbedding, GEMMA, input=tokens).param or "").startswith("input")


def test_token_ids_need_a_vocabulary() -> None:
    assert rejection(VllmEmbedding, Rules(), input=[1]).param == "input"
    assert vllm_parameters.request(asked(VllmEmbedding, input=[1, 999]))["input"] == [1, 999]


STRUCTURED: list[Any] = [
    {},
    {"json": None},
    {"json": False},
    {"json": ""},
    {"json": "{}"},
    {"json": {}, "regex": "a"},
    {"json": {"type": "frob"}},
    {"json": {"type": "string", "minLength": 5, "pattern": "^a$"}},
    {"choice": []},
    {"choice": [""]},
    {"choice": ["a"] * 501},
    {"choice": ["a\nb"]},
    {"choice": [1]},
    {"regex": ""},
    {"regex": "a\x00b"},
    {"regex": "a" * 1_001},
    {"grammar": ""},
    {"grammar": " "},
    {"grammar": 'start: "a"'},
    {"grammar": '# ::=\nstart: "a"'},
    {"json_object": True},
    {"json_object": False},
    {"structural_tag": "{}"},
    {"json": {}, "whitespace_pattern": "x"},
    {"json": {}, "disable_any_whitespace": True},
    {"json": {}, "_backend": "outlines"},
    False,
    "",
]


@pytest.mark.parametrize("kind", GENERATING)
@pytest.mark.parametrize("value", STRUCTURED)
def test_structured_outputs_say_exactly_one_thing(kind: type[Kind], value: Any) -> None:
    """vllm#45346, CVE-2026-105757 (empty, false), CVE-2025-48942 to -48944, CVE-2025-29770 (another backend)."""
    assert (rejection(kind, structured_outputs=value).param or "").startswith("structured_outputs")


@pytest.mark.parametrize(("name", "value"), [("regex", "a+"), ("grammar", 'root ::= "a"')])
def test_regular_expressions_and_grammars_are_off_unless_a_setting_allows_them(name: str, value: str) -> None:
    """CVE-2026-55574, GHSA-j828."""
    error = rejection(VllmChat, Rules(), structured_outputs={name: value})
    assert (error.code, error.param) == ("unsupported_parameter", f"structured_outputs.{name}")
    taken = asked(VllmChat, structured_outputs={name: value})
    found = vllm_parameters.constraints(taken)
    assert [(each.kind, each.text, each.param) for each in found] == [(name, value, f"structured_outputs.{name}")]


def test_two_forms_of_an_answer_are_refused() -> None:
    form = {"type": "json_object"}
    error = rejection(VllmChat, response_format=form, structured_outputs={"choice": ["a"]})
    assert error.param == "structured_outputs"


@pytest.mark.parametrize("schema", [False, "", [], {"type": "frob"}, {"type": "number", "multipleOf": 3}])
@pytest.mark.parametrize("kind", GENERATING)
def test_a_schema_of_a_response_format_is_checked(kind: type[Kind], schema: Any) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    assert (rejection(kind, response_format=form).param or "").startswith("response_format.json_schema")


def test_a_schema_must_be_compiled_before_it_is_used() -> None:
    """vllm#47312: vLLM compiles no schema when it admits a request."""
    schema = {"type": "object", "properties": {"a": {"const": None, "description": "x"}}}
    taken = asked(VllmChat, response_format={"type": "json_schema", "json_schema": {"schema": schema}})
    (found,) = vllm_parameters.constraints(taken)
    assert (found.kind, found.param) == ("json", "response_format.json_schema")
    payload = vllm_parameters.request(taken)
    assert payload["response_format"]["json_schema"] == {"name": "output", "schema": schema}
    taken = asked(VllmChat, structured_outputs={"json": schema})
    (found,) = vllm_parameters.constraints(taken)
    assert (json.loads(found.text), found.param) == (schema, "structured_outputs.json")
    assert vllm_parameters.request(taken)["structured_outputs"] == {"json": schema}


def test_choices_become_the_grammar_that_vllm_makes_of_them() -> None:
    (found,) = vllm_parameters.constraints(asked(VllmChat, structured_outputs={"choice": ["a", 'say "b"', "c\\d"]}))
    assert found.text == r'root ::= "a" | "say \"b\"" | "c\\d"'
    assert found.kind == "grammar"


TOOLS: dict[str, tuple[Any, str]] = {
    "none": ([], "at least 1"),
    "too many": ([tool(f"f{n}") for n in range(129)], "at most 128"),
    "no function": ([{"type": "web_search"}], "type"),
    "name with a pattern": ([tool("a b")], "pattern"),
    "long name": ([tool("a" * 65)], "pattern"),
    "same name": ([tool(), tool()], "same name"),
    "bad type": ([tool(parameters={"type": "frob"})], "unknown"),
    "bad pattern": ([tool(parameters={"type": "string", "pattern": "^(a+)+$"})], "a group"),
    "remote reference": ([tool(parameters={"$ref": "http://127.0.0.1/"})], "below '#/'"),
    "reference within": (
        [tool(parameters={"type": "object", "properties": {"a": {"$ref": "#/properties/b"}, "b": STRING}})],
        "names no schema",
    ),
    "too much together": (
        [tool(f"f{n}", parameters={"type": "string", "enum": [str(k) for k in range(100)]}) for n in range(6)],
        "500 alternatives",
    ),
    "definitions that differ": (
        [
            tool("f", parameters={"$ref": "#/$defs/a", "$defs": {"a": STRING}}),
            tool("g", parameters={"$ref": "#/$defs/a", "$defs": {"a": {"type": "integer"}}}),
        ],
        "different",
    ),
    "unknown keyword": ([tool(strict=True, defer_loading=True)], "defer_loading"),
}


@pytest.mark.parametrize("name", TOOLS)
def test_tools_are_bounded_together(name: str) -> None:
    """CVE-2025-48944: `pattern` and `type` of tools went to the compiler unseen."""
    value, words = TOOLS[name]
    error = rejection(VllmChat, tools=value)
    assert words in f"{error.message} {error.param}"
    assert (error.param or "").split(".")[0] == "tools"


def test_tools_are_off_unless_there_is_a_parser_for_them() -> None:
    """CVE-2025-9141: a parser evaluated what the model wrote."""
    error = rejection(VllmChat, Rules(), tools=[tool()])
    assert (error.code, error.param) == ("unsupported_parameter", "tools")


def test_the_schemas_of_tools_must_be_compiled_first() -> None:
    parameters = {"type": "object", "properties": {"a": {"$ref": "#/$defs/s"}}, "$defs": {"s": STRING}}
    taken = asked(VllmChat, tools=[tool(parameters=parameters, strict=True), tool("g")], tool_choice="required")
    (found,) = vllm_parameters.constraints(taken)
    assert (found.kind, found.param) == ("json", "tools")
    assert '"enum": ["f"]' in found.text
    assert vllm_parameters.request(taken)["tools"][0]["function"]["parameters"] == parameters
    assert not vllm_parameters.constraints(asked(VllmChat, tools=[tool()], tool_choice="none"))


@pytest.mark.parametrize(
    "choice", ["any", 5, {}, {"type": "function"}, {"type": "function", "function": {"name": "g"}}, {"type": "custom"}]
)
def test_tool_choice_names_a_tool(choice: Any) -> None:
    error = rejection(VllmChat, tools=[tool()], tool_choice=choice)
    assert (error.param or "").split(".")[0] == "tool_choice"
    assert "union" not in (error.param or "")


def test_tool_choice_needs_tools_and_no_other_form() -> None:
    assert "needs tools" in rejection(VllmChat, tool_choice="auto").message
    error = rejection(VllmChat, tools=[tool()], tool_choice="required", response_format={"type": "json_object"})
    assert "no other form" in error.message


CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}


def test_a_conversation_with_calls_is_taken_as_it_came() -> None:
    answer = {"role": "assistant", "content": None, "tool_calls": [CALL], "refusal": None, "reasoning": "hm"}
    turns = [USER, answer, {"role": "tool", "tool_call_id": "c1", "content": "2"}]
    taken = vllm_parameters.request(asked(VllmChat, messages=turns, tools=[tool()]))
    assert taken["messages"] == [USER, {"role": "assistant", "tool_calls": [CALL], "reasoning": "hm"}, turns[2]]


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "assistant"},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "assistant", "tool_calls": [CALL] * 129},
        {"role": "assistant", "tool_calls": [CALL | {"function": {"name": "f", "arguments": "[1]"}}]},
        {"role": "assistant", "tool_calls": [CALL | {"function": {"name": "f", "arguments": "{"}}]},
        {"role": "assistant", "tool_calls": [CALL | {"function": {"name": "f", "arguments": "[" * 100_000}}]},
        {"role": "assistant", "tool_calls": [CALL | {"type": "custom"}]},
        {"role": "assistant", "content": "x", "audio": {"id": "x"}},
        {"role": "tool", "content": "x"},
        {"role": "tool", "content": "x", "tool_call_id": "x" * 201},
        {"role": "user", "content": "x", "tool_calls": [CALL]},
        {"role": "function", "content": "x"},
        {"role": ["user"], "content": "x"},
        "hi",
    ],
)
def test_a_turn_that_is_none_is_refused_by_name(turn: Any) -> None:
    error = rejection(VllmChat, messages=[USER, turn])
    assert (error.param or "").startswith("messages.1")
    assert "union" not in (error.param or "")


TEXTS: list[tuple[type, dict[str, Any], str]] = [
    (VllmChat, {"messages": [USER, {"role": "user", "content": "a <start_of_image> b"}]}, "messages.1"),
    (VllmChat, {"messages": [{"role": "system", "content": "<image_soft_token>"}, USER]}, "messages.0"),
    (VllmChat, {"messages": [{"role": "user", "content": "x", "name": "<start_of_image>"}]}, "messages.0"),
    (
        VllmChat,
        {"messages": [{"role": "user", "content": [{"type": "text", "text": t} for t in ("<start_", " of_image>")]}]},
        "messages.0",
    ),
    (VllmChat, {"messages": [{"role": "tool", "tool_call_id": "c", "content": "<start_of_image>"}]}, "messages.0"),
    (VllmChat, {"messages": [{"role": "assistant", "content": "a", "reasoning": "<start_of_image>"}]}, "messages.0"),
    (
        VllmChat,
        {
            "messages": [
                {
                    "role": "assistant",
                    "tool_calls": [CALL | {"function": {"name": "f", "arguments": '{"a": "\\u003cstart_of_image>"}'}}],
                }
            ]
        },
        "messages.0",
    ),
    (VllmChat, {"tools": [tool(description="<start_of_image>")]}, "tools"),
    (
        VllmChat,
        {"tools": [tool(parameters={"type": "object", "properties": {"<start_of_image>": STRING}})]},
        "tools",
    ),
    (VllmCompletion, {"prompt": "<start_of_image>"}, "prompt"),
    (VllmEmbedding, {"input": ["a", "<start_of_image>"]}, "input"),
]


@pytest.mark.parametrize(("kind", "body", "param"), TEXTS)
def test_f90_a_text_may_not_hold_what_stands_for_an_image(kind: type[Kind], body: dict[str, Any], param: str) -> None:
    """CVE-2026-44222. A model without images knows no such token, and the same text is a text."""
    error = rejection(kind, GEMMA, **body)
    assert (error.code, error.param) == ("invalid_value", param)
    asked(kind, Rules(tools=True, vocabulary=1_000), **body)


def test_f90_other_special_tokens_are_text() -> None:
    turns = "<start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\n"
    assert vllm_parameters.request(asked(VllmCompletion, GEMMA, prompt=turns))["prompt"] == turns


@pytest.mark.parametrize(
    ("config", "found"),
    [
        (
            {"boi_token_index": 255999, "eoi_token_index": 256000, "image_token_index": 262144, "mm_tokens": 256},
            {255999, 256000, 262144},
        ),
        (
            {"image_token_id": 5, "video_token_id": 6, "vision_start_token_id": 7, "vision_end_token_id": 8},
            {5, 6, 7, 8},
        ),
        ({"audio_token_id": 9, "boa_token_id": 10, "eoa_token_index": 11}, {9, 10, 11}),
        ({"img_context_token_id": 12, "media_placeholder_token_id": 13}, {12, 13}),
        ({"bos_token_id": 1, "eos_token_id": [1, 2], "pad_token_id": 0, "image_size": 896, "vocab_size": 9}, set()),
        ({"image_token_id": None, "image_token_index": "5", "video_token_id": True}, set()),
    ],
)
def test_placeholders_are_those_that_the_model_names(config: dict[str, Any], found: set[int]) -> None:
    """Gemma 3's, Qwen VL's, Gemma 3n's; no model's end of text."""
    assert vllm_parameters.placeholders(config, lambda token: f"<{token}>") == {token: f"<{token}>" for token in found}


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
TEXT = {"type": "text", "text": "hi"}


def test_the_first_image_too_many_is_named() -> None:
    turns = [{"role": "user", "content": content} for content in ([TEXT, IMAGE], "hi", [IMAGE, TEXT, IMAGE])]
    assert asked(VllmChat, Rules(images=3), messages=turns)
    error = rejection(VllmChat, Rules(images=2), messages=turns)
    assert (error.param, error.code) == ("messages.2.content.2", "invalid_value")
    assert rejection(VllmChat, Rules(), messages=turns).param == "messages.0.content.1"


def test_a_chat_is_put_to_vllm_in_its_own_words() -> None:
    body: dict[str, Any] = {
        "max_tokens": 5,
        "temperature": 0,
        "top_k": 40,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "min_tokens": 1,
        "ignore_eos": True,
        "skip_special_tokens": False,
        "logprobs": True,
        "top_logprobs": 3,
        "stop": ["x"],
        "seed": 7,
        "reasoning_effort": "low",
        "include_reasoning": False,
        "parallel_tool_calls": False,
        "response_format": {"type": "text"},
    }
    no_effect: dict[str, Any] = {"user": "u", "metadata": {"a": "b"}, "store": False, "stream": False, "n": None}
    taken = vllm_parameters.request(asked(VllmChat, **body, **no_effect))
    body["max_completion_tokens"] = body.pop("max_tokens")
    assert taken == {"model": "m", "messages": [USER], **body}


def test_the_new_name_of_the_limit_goes_first() -> None:
    taken = vllm_parameters.request(asked(VllmChat, max_tokens=5, max_completion_tokens=7))
    assert (taken.get("max_tokens"), taken["max_completion_tokens"]) == (None, 7)


def test_a_completion_is_put_to_vllm_in_its_own_words() -> None:
    body: dict[str, Any] = {
        "max_tokens": 5,
        "n": 2,
        "temperature": 0.5,
        "logprobs": 5,
        "structured_outputs": {"choice": ["a", "b"]},
    }
    assert vllm_parameters.request(asked(VllmCompletion, echo=False, user="u", **body)) == {
        "model": "m",
        "prompt": "hi",
        **body,
    }


def test_pooling_is_put_to_vllm_in_its_own_words() -> None:
    body = {"model": "m", "input": ["a", "b"], "dimensions": 256, "encoding_format": "base64"}
    assert vllm_parameters.request(vllm_parameters.check(VllmEmbedding, body | {"user": "u"}, Rules())) == body
    for value in (0, -1, 65_537):
        assert rejection(VllmEmbedding, dimensions=value).param == "dimensions"
