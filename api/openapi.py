"""The OpenAPI document: what FastAPI finds in the routes, and what is true of all of them.

A new route needs to say only what is special about it, with `responses=openapi.answers(409)`. The rest follows from
what it is: below `/v1` it needs a key; with a body, that may be too large; with an id in its path, that may be unknown.
"""

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from api import anthropic_errors
from jobs.protocol import ErrorEnvelope

Json = dict[str, Any]

# Everything that is not 2xx or 304, and when it is sent.
_MEANINGS = {
    400: "A parameter, a header or the body is not valid; `param` names it.",
    401: "No API key, or none that is in use.",
    403: "The key may not do this.",
    404: "Unknown, or another project's.",
    408: "The body arrived too slowly.",
    409: "Not in this state, or not with this Idempotency-Key.",
    413: "The body is too large.",
    415: "The body has a `Content-Encoding`.",
    416: "The range lies beyond the end of the file.",
    429: "Too much at once. `retry-after` says when to try again.",
    500: "The server's fault.",
    503: "Postgres is away. Try again.",
}
_HEADERS: dict[int, Json] = {
    401: {"www-authenticate": {"schema": {"type": "string"}, "required": True}},
    416: {"content-range": {"schema": {"type": "string"}, "required": True}},
    429: {"retry-after-ms": {"schema": {"type": "integer"}, "required": True}},
    503: {"retry-after": {"schema": {"type": "integer"}, "required": True}},
}
_REQUEST_ID: Json = {
    "x-request-id": {
        "description": "Names this call, also in the server's logs.",
        "schema": {"type": "string", "pattern": "^req_"},
        "required": True,
    }
}
_TAGS = {
    "uploads": "Files that are sent in parts.",
    "files": "Input files, and the output and error files of batches.",
    "batches": "Runs of many requests.",
    "message batches": "Anthropic's Message Batches, on the same jobs.",
    "webhooks": "Receivers that are told when batches end.",
    "models": "What the workers serve.",
    "health": "For load balancers and supervisors.",
}
_KEY = {"type": "http", "scheme": "bearer", "description": "`Authorization: Bearer pm_...`, a key of a project."}
# Where a listing goes on: an id, which may be unknown.
_PLACES = {("query", name) for name in ("after", "after_id", "before_id")}
# FastAPI's answer to a call that is not valid. Ours is a 400.
_NOT_SENT = "422"


def answers(*statuses: int) -> dict[int | str, Json]:
    """Return what a route's `responses` says of these errors."""
    return {status: {"model": ErrorEnvelope, "description": _MEANINGS[status]} for status in statuses}


def install(app: FastAPI) -> None:
    """Have `app` serve this document. Routes that are added later are in it too, until it is first asked for."""

    def document() -> Json:
        if app.openapi_schema is None:
            app.openapi_schema = _complete(
                get_openapi(
                    title=app.title,
                    version=app.version,
                    summary="The OpenAI Batch API on your own GPUs.",
                    routes=app.routes,
                    tags=[{"name": name, "description": text} for name, text in _TAGS.items()],
                )
            )
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _complete(document: Json) -> Json:
    components = document["components"]
    components["securitySchemes"] = {"key": _KEY}
    schemas: Json = components["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    envelope = ErrorEnvelope.model_json_schema(mode="serialization", ref_template="#/components/schemas/{model}")
    schemas |= envelope.pop("$defs") | {"ErrorEnvelope": envelope, "AnthropicError": anthropic_errors.SCHEMA}
    for path, operation in _operations(document):
        _describe(path, operation)
    return document


def _operations(document: Json) -> Iterator[tuple[str, Json]]:
    for path, item in document["paths"].items():
        for operation in item.values():
            yield path, operation


def _describe(path: str, operation: Json) -> None:
    needs_key = path.startswith("/v1/")
    operation["security"] = [{"key": []}] if needs_key else []
    for parameter in operation.get("parameters", ()):
        _leave_out_null(parameter)
    responses: Json = operation["responses"]
    responses.pop(_NOT_SENT, None)
    schema = "AnthropicError" if path.startswith(anthropic_errors.PREFIX) else "ErrorEnvelope"
    for status in _follow(operation, needs_key=needs_key):
        responses[str(status)] = _error(status, schema)
    for code, response in responses.items():
        response["headers"] = _REQUEST_ID | _HEADERS.get(int(code), {}) | response.get("headers", {})
    operation["responses"] = dict(sorted(responses.items()))


def _leave_out_null(parameter: Json) -> None:
    """A parameter is left out; it is never null."""
    kinds = parameter["schema"].pop("anyOf", None)
    if kinds:
        (kind,) = (each for each in kinds if each != {"type": "null"})
        parameter["schema"] |= kind


def _follow(operation: Json, *, needs_key: bool) -> Iterator[int]:
    """Yield the errors that follow from what the operation is."""
    parameters = {(each["in"], each["name"].lower()) for each in operation.get("parameters", ())}
    places = {place for place, _ in parameters}
    yield 500
    if needs_key:
        yield from (401, 403, 429, 503)
    if "requestBody" in operation or parameters:
        yield 400
    if "requestBody" in operation:
        yield from (408, 413, 415)
    if "path" in places or not parameters.isdisjoint(_PLACES):
        yield 404
    if ("header", "idempotency-key") in parameters:
        yield 409


def _error(status: int, schema: str) -> Json:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {"description": _MEANINGS[status], "content": content}
