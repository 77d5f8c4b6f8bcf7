"""The OpenAPI document is complete, and what it says is true: schemathesis asks a real server."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import services

from api.app import create_app
from jobs.settings import Settings

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
    "allow_header_conformance",
    "use_after_free",
    "ignored_auth",
)
EXAMPLES = 100


def test_the_server_does_what_the_document_says(stack: services.Stack, tmp_path: Path) -> None:
    stack.api()
    stack.know_model("scripted")
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", f"http://127.0.0.1:{stack.port}/openapi.json"),
        *("--header", f"Authorization: Bearer {stack.key()}"),
        *("--checks", ",".join(CHECKS)),
        *("--max-examples", str(EXAMPLES), "--seed", "1", "--no-shrink", "--generation-deterministic"),
        *("--suppress-health-check", "all", "--continue-on-failure", "--no-color", "--warnings", "off"),
    ]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False)
    print(ended.stdout[-30_000:], ended.stderr[-2_000:])
    assert ended.returncode == 0, "what it found is above"


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return create_app(Settings()).openapi()


def operations(document: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(path, operation) for path, item in document["paths"].items() for operation in item.values()]


def test_every_call_is_described(document: dict[str, Any]) -> None:
    known = {tag["name"] for tag in document["tags"]}
    for path, operation in operations(document):
        assert operation["description"], path
        assert set(operation["tags"]) <= known, path
        assert operation["security"] == ([{"key": []}] if path.startswith("/v1/") else []), path
        for parameter in operation.get("parameters", ()):
            assert {"type": "null"} not in parameter["schema"].get("anyOf", []), "left out, never null"
            assert not parameter["name"].startswith("x-stainless"), "between us and the SDK"


def test_every_error_has_the_envelope(document: dict[str, Any]) -> None:
    for path, operation in operations(document):
        name = "AnthropicError" if path.startswith("/v1/messages") else "ErrorEnvelope"
        envelope = {"$ref": f"#/components/schemas/{name}"}
        errors = {status: answer for status, answer in operation["responses"].items() if status >= "400"}
        assert "500" in errors, path
        assert "422" not in errors, "400 is what we answer"
        assert all(answer["content"]["application/json"]["schema"] == envelope for answer in errors.values()), path
        assert all("x-request-id" in answer["headers"] for answer in operation["responses"].values()), path


def test_what_is_sent_is_whole(document: dict[str, Any]) -> None:
    """Every field of an object is there, null when unset."""
    for name in ("Batch", "File", "Model", "ErrorBody"):
        schema = document["components"]["schemas"][name]
        assert set(schema["required"]) == set(schema["properties"]), name
    assert {"type": "null"} in document["components"]["schemas"]["Batch"]["properties"]["output_file_id"]["anyOf"]


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    def follow(node: Any) -> None:
        if isinstance(node, dict):
            if isinstance(reference := node.get("$ref"), str):
                place: Any = document
                for step in reference.removeprefix("#/").split("/"):
                    place = place[step]
            node = list(node.values())
        if isinstance(node, list):
            for child in node:
                follow(child)

    follow(document)
    assert "HTTPValidationError" not in document["components"]["schemas"]
