"""Endpoints put in terms of others, checked with the models of the SDKs that read the answers."""

import asyncio
from typing import Any

import pytest
from anthropic.types import Message
from openai.types.responses import Response, ResponseOutputMessage, ResponseOutputText

from jobs.errors import RequestRejected
from jobs.protocol import BATCH_ENDPOINTS, CHAT, COMPLETIONS, EMBEDDINGS, MESSAGES, RESPONSES, SCORE
from workers import endpoints
from workers.endpoints import messages, responses, score
from workers.engines import parameters
from workers.engines.base import Body
from workers.engines.scripted import ScriptedEngine

PNG = "data:image/png;base64,AAAA"


def run(endpoint: str, **body: Any) -> Body:
    engine = ScriptedEngine(["scripted"], stall_seconds=60)
    return asyncio.run(endpoints.run(engine, endpoint, {"model": "scripted", **body}))


def rejection(endpoint: str, **body: Any) -> RequestRejected:
    with pytest.raises(RequestRejected) as caught:
        run(endpoint, **body)
    return caught.value


def asked_response(**body: Any) -> responses.ResponsesParameters:
    return parameters.check(responses.ResponsesParameters, {"model": "m", **body})


def asked_message(**body: Any) -> messages.MessagesParameters:
    return parameters.check(messages.MessagesParameters, {"model": "m", "max_tokens": 9, **body})


def chat_answer(**changes: Any) -> Body:
    choice = {
        "index": 0,
        "finish_reason": "stop",
        "logprobs": None,
        "message": {"role": "assistant", "content": "Hello."},
        **changes,
    }
    usage = {
        "prompt_tokens": 10,
        "completion_tokens": 4,
        "total_tokens": 14,
        "prompt_tokens_details": {"cached_tokens": 6},
        "completion_tokens_details": {"reasoning_tokens": 1},
    }
    return {"id": "x", "created": 1, "model": "m", "choices": [choice], "usage": usage}


def test_what_is_served_follows_from_what_the_engine_serves() -> None:
    class Engine(ScriptedEngine):
        def __init__(self, *own: str) -> None:
            super().__init__(["scripted"], stall_seconds=60)
            self.own = own

        def endpoints(self) -> tuple[str, ...]:
            return self.own

    assert endpoints.served(Engine(CHAT, COMPLETIONS)) == [CHAT, COMPLETIONS, RESPONSES, MESSAGES]
    assert endpoints.served(Engine(EMBEDDINGS)) == [EMBEDDINGS, SCORE]
    assert endpoints.served(Engine(COMPLETIONS)) == [COMPLETIONS]
    assert endpoints.served(Engine(SCORE)) == [SCORE]
    assert set(endpoints.served(ScriptedEngine(["scripted"], stall_seconds=60))) == set(BATCH_ENDPOINTS)


# Responses.


def test_a_response_is_one_for_the_sdk() -> None:
    body = run(RESPONSES, input="two words", instructions="Echo.", metadata={"a": "b"}, max_output_tokens=7)
    response = Response.model_validate(body)
    assert response.output_text == "two words"
    assert (response.status, response.incomplete_details, response.error) == ("completed", None, None)
    assert (response.instructions, response.metadata, response.max_output_tokens) == ("Echo.", {"a": "b"}, 7)
    assert (response.previous_response_id, response.tools) == (None, [])
    assert response.usage and response.usage.total_tokens == 4
    assert set(body) <= set(Response.model_fields), "nothing that the SDK does not know"
    assert run(RESPONSES, input="x")["id"] != run(RESPONSES, input="x")["id"]


def test_a_response_becomes_a_chat_completion() -> None:
    chat = responses.to_chat(
        asked_response(
            input=[
                {"role": "developer", "content": "Be terse."},
                {
                    "type": "message",
                    "role": "user",
                    "content": [
                        {"type": "input_text", "text": "What is this?"},
                        {"type": "input_image", "image_url": PNG, "detail": "low"},
                        {"type": "input_image", "image_url": "https://example.org/a.png"},
                        {"type": "input_image", "file_id": "file-1"},
                    ],
                },
            ],
            instructions="Look.",
            max_output_tokens=5,
            temperature=0.5,
            top_p=0.9,
        )
    )
    assert chat == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "Look."},
            {"role": "developer", "content": "Be terse."},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What is this?"},
                    {"type": "image_url", "image_url": {"url": PNG, "detail": "low"}},
                    {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
                    {"type": "image_url", "image_url": {"file_id": "file-1"}},
                ],
            },
        ],
        "max_completion_tokens": 5,
        "temperature": 0.5,
        "top_p": 0.9,
    }


def test_the_output_of_a_response_may_be_sent_again() -> None:
    (output,) = Response.model_validate(run(RESPONSES, input="first")).output
    turns = [{"role": "user", "content": "first"}, output.model_dump(), {"role": "user", "content": "second"}]
    assert Response.model_validate(run(RESPONSES, input=turns)).output_text == "second"
    assert responses.to_chat(asked_response(input=turns))["messages"][1]["content"] == [
        {"type": "text", "text": "first"}
    ]


def test_the_form_of_a_response() -> None:
    schema = {"type": "object"}
    form = {"type": "json_schema", "name": "label", "strict": True, "schema": schema}
    asked = asked_response(input="x", text={"format": form})
    assert responses.to_chat(asked)["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "label", "strict": True, "schema": schema},
    }
    assert Response.model_validate(responses.from_chat(asked, chat_answer())).text
    assert responses.from_chat(asked, chat_answer())["text"] == {"format": form}
    asked = asked_response(input="x", text={"format": {"type": "json_object"}})
    assert responses.to_chat(asked)["response_format"] == {"type": "json_object"}
    assert "response_format" not in responses.to_chat(asked_response(input="x", text={"format": {"type": "text"}}))


@pytest.mark.parametrize(
    ("finish", "status", "reason"),
    [
        ("stop", "completed", None),
        ("length", "incomplete", "max_output_tokens"),
        ("content_filter", "incomplete", "content_filter"),
    ],
)
def test_how_a_response_ended(finish: str, status: str, reason: str | None) -> None:
    body = responses.from_chat(asked_response(input="x"), chat_answer(finish_reason=finish))
    response = Response.model_validate(body)
    assert (response.status, response.output[0].status) == (status, status)  # type: ignore[union-attr]
    assert (response.incomplete_details and response.incomplete_details.reason) == reason


def test_the_tokens_of_a_response() -> None:
    usage = Response.model_validate(responses.from_chat(asked_response(input="x"), chat_answer())).usage
    assert usage and usage.model_dump() == {
        "input_tokens": 10,
        "input_tokens_details": {"cached_tokens": 6, "cache_write_tokens": 0, "cache_write_tokens_details": None},
        "output_tokens": 4,
        "output_tokens_details": {"reasoning_tokens": 1},
        "total_tokens": 14,
    }


def test_log_probabilities_of_a_response() -> None:
    asked = asked_response(input="x", include=[responses.LOGPROBS], top_logprobs=1)
    chat = responses.to_chat(asked)
    assert (chat["logprobs"], chat["top_logprobs"]) == (True, 1)
    top = {"token": "ä", "logprob": -0.5, "bytes": None}
    answer = chat_answer(logprobs={"content": [{**top, "top_logprobs": [top]}]})
    (item,) = Response.model_validate(responses.from_chat(asked, answer)).output
    assert isinstance(item, ResponseOutputMessage) and isinstance(item.content[0], ResponseOutputText)
    (token,) = item.content[0].logprobs or []
    assert (token.token, token.logprob, token.bytes) == ("ä", -0.5, [0xC3, 0xA4])
    assert token.top_logprobs[0].bytes == [0xC3, 0xA4]
    assert "logprobs" not in responses.to_chat(asked_response(input="x", top_logprobs=1))


IMAGE_PART = {"type": "input_image", "image_url": PNG}


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "unsupported_parameter"),
        ({"conversation": "conv_1"}, "conversation", "unsupported_parameter"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt", "unsupported_parameter"),
        ({"tools": [{"type": "web_search"}]}, "tools", "unsupported_parameter"),
        ({"tool_choice": "auto"}, "tool_choice", "unsupported_parameter"),
        ({"max_tool_calls": 1}, "max_tool_calls", "unsupported_parameter"),
        ({"reasoning": {"effort": "low"}}, "reasoning", "unsupported_parameter"),
        ({"service_tier": "flex"}, "service_tier", "unsupported_parameter"),
        ({"stream_options": {}}, "stream_options", "unsupported_parameter"),
        ({"context_management": []}, "context_management", "unsupported_parameter"),
        ({"moderation": {"model": "m"}}, "moderation", "unsupported_parameter"),
        ({"messages": []}, "messages", "unsupported_parameter"),
        ({"max_tokens": 5}, "max_tokens", "unsupported_parameter"),
        ({"seed": 1}, "seed", "unsupported_parameter"),
        ({"text": {"verbosity": "low"}}, "text.verbosity", "unsupported_parameter"),
        ({"background": True}, "background", "invalid_value"),
        ({"store": True}, "store", "invalid_value"),
        ({"stream": True}, "stream", "invalid_value"),
        ({"truncation": "auto"}, "truncation", "invalid_value"),
        ({"include": ["reasoning.encrypted_content"]}, "include.0", "invalid_value"),
        ({"max_output_tokens": 0}, "max_output_tokens", "invalid_value"),
        ({"temperature": 3}, "temperature", "invalid_value"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type", "invalid_value"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format", "invalid_value"),
        ({"input": None}, "input", "missing_required_parameter"),
        ({"input": ""}, "input", "invalid_value"),
        ({"input": []}, "input", "invalid_value"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0.type", "invalid_value"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input.0.role", "invalid_value"),
        ({"input": [{"type": "reasoning", "role": "user", "content": "x"}]}, "input.0.type", "invalid_value"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]},
            "input.0.content.0.type",
            "invalid_value",
        ),
        (
            {"input": [{"role": "user", "content": [{**IMAGE_PART, "file_id": "f"}]}]},
            "input.0.content.0",
            "invalid_value",
        ),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input.0.content.0", "invalid_value"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_text", "text": "x", "file_id": "f"}]}]},
            "input.0.content.0",
            "invalid_value",
        ),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input.0.content.0", "invalid_value"),
        ({"input": [{"role": "user", "content": [{**IMAGE_PART, "text": "x"}]}]}, "input.0.content.0", "invalid_value"),
    ],
)
def test_a_parameter_of_a_response_that_is_not_taken_is_named(body: dict[str, Any], param: str, code: str) -> None:
    error = rejection(RESPONSES, **{"input": "x", **body})
    assert (error.param, error.code, error.status_code) == (param, code, 400)
    assert f"'{param}'" in error.message


def test_what_the_engine_refuses_has_the_clients_name() -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "user", "content": [IMAGE_PART]}]
    assert rejection(RESPONSES, input=turns, instructions="x").param == "input.1.content.0"
    assert rejection(RESPONSES, input=turns).param == "input.1.content.0"
    asked = asked_response(input="x", instructions="y")
    for engines, clients in {
        "messages": "input",
        "messages.0.content": "instructions.content",
        "messages.1": "input",
        "max_completion_tokens": "max_output_tokens",
        "response_format.json_schema.schema": "text.format.schema",
        "temperature": "temperature",
    }.items():
        error = RequestRejected(f"Invalid value for '{engines}': no.", code="c", param=engines)
        renamed = endpoints._renamed(error, responses.names(asked))
        assert (renamed.param, renamed.message) == (clients, f"Invalid value for '{clients}': no.")


def test_what_is_wrong_with_the_image_of_a_response_has_the_clients_name() -> None:
    content = [{"type": "input_text", "text": "a"}, IMAGE_PART, {"type": "input_image", "file_id": "file-1"}]
    known = responses.names(asked_response(input=[{"role": "user", "content": content}], instructions="x"))
    for engines, clients in {
        "messages.1.content.1": "input.0.content.1",
        "messages.1.content.1.image_url": "input.0.content.1",
        "messages.1.content.1.image_url.url": "input.0.content.1.image_url",
        "messages.1.content.2.image_url.file_id": "input.0.content.2.file_id",
    }.items():
        assert endpoints._client_name(engines, known) == clients


# Messages.


def test_a_message_is_one_for_the_sdk() -> None:
    body = run(MESSAGES, max_tokens=9, messages=[{"role": "user", "content": "two words"}], system="Echo.")
    message = Message.model_validate(body)
    assert [block.text for block in message.content] == ["two words"]  # type: ignore[union-attr]
    assert (message.stop_reason, message.stop_sequence, message.model) == ("end_turn", None, "scripted")
    assert (message.usage.input_tokens, message.usage.output_tokens) == (2, 2)
    assert set(body) <= set(Message.model_fields), "nothing that the SDK does not know"


def test_a_message_becomes_a_chat_completion() -> None:
    cached = {"cache_control": {"type": "ephemeral"}}
    image = {"type": "base64", "media_type": "image/png", "data": "AAAA"}
    chat = messages.to_chat(
        asked_message(
            system=[{"type": "text", "text": "Look.", **cached}, {"type": "text", "text": "Closely."}],
            messages=[
                {"role": "user", "content": "a"},
                {"role": "user", "content": [{"type": "text", "text": "b", **cached}]},
                {"role": "assistant", "content": [{"type": "text", "text": "c", "citations": None}]},
                {
                    "role": "user",
                    "content": [
                        {"type": "image", "source": image},
                        {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}},
                        {"type": "image", "source": {"type": "file", "file_id": "file-1"}},
                    ],
                },
            ],
            stop_sequences=["END"],
            temperature=1,
            top_p=0.9,
        )
    )
    assert chat == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "Look.\nClosely."},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "c"}]},
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": PNG}},
                    {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
                    {"type": "image_url", "image_url": {"file_id": "file-1"}},
                ],
            },
        ],
        "max_completion_tokens": 9,
        "stop": ["END"],
        "temperature": 1,
        "top_p": 0.9,
    }


def test_the_form_of_a_message() -> None:
    schema = {"type": "object"}
    form = {"type": "json_schema", "schema": schema}
    asked = asked_message(messages=[{"role": "user", "content": "x"}], output_config={"format": form})
    form = messages.to_chat(asked)["response_format"]
    assert (form["type"], form["json_schema"]["schema"]) == ("json_schema", schema)


@pytest.mark.parametrize(
    ("changes", "reason", "sequence"),
    [
        ({"finish_reason": "stop"}, "end_turn", None),
        ({"finish_reason": "stop", "stop_reason": None}, "end_turn", None),
        ({"finish_reason": "stop", "stop_reason": 128_001}, "end_turn", None),
        ({"finish_reason": "stop", "stop_reason": "END"}, "stop_sequence", "END"),
        ({"finish_reason": "length"}, "max_tokens", None),
        ({"finish_reason": "content_filter"}, "refusal", None),
    ],
)
def test_why_a_message_ended(changes: dict[str, Any], reason: str, sequence: str | None) -> None:
    asked = asked_message(messages=[{"role": "user", "content": "x"}])
    message = Message.model_validate(messages.from_chat(asked, chat_answer(**changes)))
    assert (message.stop_reason, message.stop_sequence) == (reason, sequence)


def test_a_stop_sequence_is_reported() -> None:
    turns = [{"role": "user", "content": "one END two"}]
    message = Message.model_validate(run(MESSAGES, max_tokens=9, messages=turns, stop_sequences=["STOP", "END"]))
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "END")
    assert message.content[0].text == "one "  # type: ignore[union-attr]


def test_the_tokens_of_a_message() -> None:
    asked = asked_message(messages=[{"role": "user", "content": "x"}])
    usage = Message.model_validate(messages.from_chat(asked, chat_answer())).usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens) == (4, 6, 4)
    assert usage.output_tokens_details and usage.output_tokens_details.thinking_tokens == 1


def test_an_empty_answer_has_no_block() -> None:
    asked = asked_message(messages=[{"role": "user", "content": "x"}])
    answer = chat_answer(message={"role": "assistant", "content": ""})
    assert Message.model_validate(messages.from_chat(asked, answer)).content == []


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"tools": []}, "tools", "unsupported_parameter"),
        ({"tool_choice": {"type": "auto"}}, "tool_choice", "unsupported_parameter"),
        ({"top_k": 5}, "top_k", "unsupported_parameter"),
        ({"container": "c"}, "container", "unsupported_parameter"),
        ({"mcp_servers": []}, "mcp_servers", "unsupported_parameter"),
        ({"output_config": {"effort": "low"}}, "output_config.effort", "unsupported_parameter"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking.type", "invalid_value"),
        ({"stream": True}, "stream", "invalid_value"),
        ({"max_tokens": None}, "max_tokens", "missing_required_parameter"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"temperature": 1.5}, "temperature", "invalid_value"),
        ({"stop_sequences": [""]}, "stop_sequences.0", "invalid_value"),
        ({"system": [{"type": "image"}]}, "system.0.type", "invalid_value"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages.0.role", "invalid_value"),
        ({"messages": [{"role": "user", "content": []}]}, "messages.0.content", "invalid_value"),
        (
            {"messages": [{"role": "user", "content": [{"type": "document", "source": {}}]}]},
            "messages.0.content.0.source.type",
            "missing_required_parameter",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]},
            "messages.0.content.0.type",
            "invalid_value",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0", "invalid_value"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "data": "x"}}]}]},
            "messages.0.content.0.source",
            "invalid_value",
        ),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "image", "source": {"type": "file", "file_id": "f", "url": "x"}}],
                    }
                ]
            },
            "messages.0.content.0.source",
            "invalid_value",
        ),
        (
            {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]},
            "messages.1",
            "invalid_value",
        ),
    ],
)
def test_a_parameter_of_a_message_that_is_not_taken_is_named(body: dict[str, Any], param: str, code: str) -> None:
    error = rejection(MESSAGES, **{"max_tokens": 9, "messages": [{"role": "user", "content": "x"}], **body})
    assert (error.param, error.code, error.status_code) == (param, code, 400)
    assert f"'{param}'" in error.message


def test_turns_and_their_parts_keep_their_numbers() -> None:
    source = {"type": "url", "url": "https://example.org/a"}
    image = {"role": "user", "content": [{"type": "text", "text": "c"}, {"type": "image", "source": source}]}
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, image]
    assert rejection(MESSAGES, max_tokens=9, messages=turns, system="x").param == "messages.2.content.1"
    assert rejection(MESSAGES, max_tokens=9, messages=[turns[0], image], system="x").param == "messages.1.content.1"
    known = messages.names(asked_message(messages=[turns[0], image]))
    assert endpoints._client_name("messages.0.content", known) == "messages.content", "two turns in one"
    assert endpoints._client_name("messages.0.content.2.image_url.url", known) == "messages.1.content.1.source.url"
    source |= {"type": "base64", "media_type": "image/png", "data": "x"}
    del source["url"]
    known = messages.names(asked_message(messages=[image]))
    assert endpoints._client_name("messages.0.content.1.image_url.url", known) == "messages.0.content.1.source.data"
    asked = asked_message(messages=[turns[0]], system="x")
    assert messages.names(asked)["messages.0"] == "system"


# Scores.


@pytest.mark.parametrize("names", score.SPELLINGS)
def test_scores_are_cosines(names: tuple[str, str]) -> None:
    body = run(SCORE, **{names[0]: "same", names[1]: ["same", "other"]})
    assert (body["object"], body["model"]) == ("list", "scripted")
    assert [(item["index"], item["object"]) for item in body["data"]] == [(0, "score"), (1, "score")]
    same, other = (item["score"] for item in body["data"])
    assert same == pytest.approx(1)
    assert -1 <= other < 0.999
    assert body["usage"] == {"prompt_tokens": 3, "total_tokens": 3, "completion_tokens": 0}


def test_scores_of_pairs() -> None:
    body = run(SCORE, queries=["a", "b"], documents=["a", "b"])
    assert [item["score"] for item in body["data"]] == [pytest.approx(1), pytest.approx(1)]
    assert len(run(SCORE, text_1=["a"], text_2="b")["data"]) == 1


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({}, None, "invalid_value"),
        ({"queries": "a"}, None, "invalid_value"),
        ({"queries": "a", "text_2": "b"}, None, "invalid_value"),
        ({"queries": "a", "documents": "b", "items": "c"}, None, "invalid_value"),
        ({"queries": ["a", "b"], "documents": ["c"]}, None, "invalid_value"),
        ({"queries": ["a", "b"], "documents": ["c", "d", "e"]}, None, "invalid_value"),
        ({"queries": [], "documents": "b"}, "queries", "invalid_value"),
        ({"queries": "a", "documents": ["b", ""]}, "documents.1", "invalid_value"),
        ({"queries": "a", "documents": ["b"] * 1025}, "documents", "invalid_value"),
        ({"queries": "a", "documents": [{"content": []}]}, "documents.0", "invalid_value"),
        ({"queries": "a", "documents": "b", "truncate_prompt_tokens": 5}, "truncate_prompt_tokens", None),
        ({"queries": "a", "documents": "b", "use_activation": False}, "use_activation", None),
    ],
)
def test_a_parameter_of_a_score_that_is_not_taken_is_named(
    body: dict[str, Any], param: str | None, code: str | None
) -> None:
    error = rejection(SCORE, **body)
    assert (error.param, error.code) == (param, code or "unsupported_parameter")


def test_a_text_that_the_engine_refuses_has_the_clients_name() -> None:
    asked = parameters.check(score.ScoreParameters, {"model": "m", "text_1": "a", "text_2": ["b", "c"]})
    known = score.names(asked)
    assert [known[name] for name in ("input.0", "input.1", "input.2", "input")] == [
        "text_1.0",
        "text_2.0",
        "text_2.1",
        "text_2",
    ]
