"""Spans of a batch, from all processes, at a collector; and lines of the log that say what they are about."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx2
import pytest
import services
from clients import User
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from payloads import numbered

from api.stack.program import free_port

OF_A_BATCH = {"create_batch", "claim", "run_shard", "commit", "finalize"}


class Collector:
    """Takes OTLP over HTTP."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    @contextmanager
    def listening(self, port: int) -> Iterator[None]:
        bodies = self.bodies

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                bodies.append(self.rfile.read(int(self.headers["content-length"])))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None: ...

        with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            yield
            server.shutdown()
            thread.join()

    def spans(self, trace: str) -> list[Span]:
        """Return the spans of the trace with these digits."""
        found = []
        for body in tuple(self.bodies):
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                for scope in resource.scope_spans:
                    found += [span for span in scope.spans if span.trace_id.hex() == trace]
        return found


@pytest.fixture(scope="module")
def traced(
    servers: services.Servers, template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[services.Stack, Collector]]:
    port, collector = free_port(), Collector()
    with (
        collector.listening(port),
        services.scripted_stack(servers, template, tmp_path_factory.mktemp("stack")) as stack,
    ):
        stack.settings = {
            **stack.settings,
            "PROMPTMILL_TRACING__ENDPOINT": f"http://127.0.0.1:{port}/v1/traces",
            # OpenTelemetry's own: how soon spans are sent, milliseconds.
            "OTEL_BSP_SCHEDULE_DELAY": "100",
        }
        stack.api()
        stack.reconciler()
        stack.worker()
        yield stack, collector


def test_the_trace_of_a_batch_has_its_id_and_what_every_process_did(traced: tuple[services.Stack, Collector]) -> None:
    stack, collector = traced
    user = User(stack)
    batch = user.wait(user.submit(numbered(300, lambda number: "REJECT CANARY" if number == 1 else "CANARY")).id)
    digits = batch.id.removeprefix("batch_")
    services.wait_until(lambda: {span.name for span in collector.spans(digits)} >= OF_A_BATCH, "all spans")
    spans = collector.spans(digits)
    (root,) = [span for span in spans if span.name == "create_batch"]
    assert root.span_id.hex() == digits[:16]
    assert root.parent_span_id == b""
    assert {span.parent_span_id for span in spans if span is not root} == {root.span_id}
    assert [span.name for span in spans].count("run_shard") == 2
    assert sum(value for span in spans if span.name == "commit" for value in _numbers(span, "rows")) == 300
    (call,) = root.links
    calls = collector.spans(call.trace_id.hex())
    services.wait_until(lambda: collector.spans(call.trace_id.hex()), "the call")
    assert [span.name for span in calls or collector.spans(call.trace_id.hex())] == ["call"]
    assert not any(b"CANARY" in body for body in collector.bodies)


def _numbers(span: Span, name: str) -> list[int]:
    return [attribute.value.int_value for attribute in span.attributes if attribute.key == name]


def lines(stack: services.Stack, which: int) -> list[dict[str, Any]]:
    # The last line may be half written.
    return [json.loads(line) for line in stack.processes[which].log.read_text().split("\n")[:-1]]


def test_lines_say_what_they_are_about(traced: tuple[services.Stack, Collector]) -> None:
    stack, _ = traced
    user = User(stack)
    batch = user.wait(user.submit(numbered(3, lambda number: "ERROR" if number == 1 else "fine")).id)
    (broken,) = [line for line in lines(stack, 2) if line["event"] == "engine_error" and line["batch_id"] == batch.id]
    assert broken["shard_id"].startswith("shard_")
    assert broken["line"] == 2
    (ended,) = [line for line in lines(stack, 2) if line["event"] == "shard_ended" and line["batch_id"] == batch.id]
    assert ended["shard_id"] == broken["shard_id"]
    assert {line["process"] for which, line in _all(stack) if which == 2} == {"worker"}
    (created,) = [line for line in lines(stack, 0) if line["event"] == "batch_created" and line["batch_id"] == batch.id]
    looked = [line for line in lines(stack, 0) if line["event"] == "call" and line.get("batch_id") == batch.id]
    assert {line["project_id"] for line in looked} == {created["project_id"]}
    assert len({line["request_id"] for line in looked}) == len(looked)


def _all(stack: services.Stack) -> list[tuple[int, dict[str, Any]]]:
    return [(which, line) for which in range(3) for line in lines(stack, which)]


@pytest.mark.parametrize(
    ("given", "is_kept"),
    [
        ("3f2b8c1e-9d4a-4c7b-8a6e-0123456789ab", True),
        ("req_3f2b8c1e9d4a4c7b8a6e0123456789ab", True),
        ("CANARY", False),
        ("3f2b8c1e9d4a4c7b8a6e0123456789ab" * 9, False),
    ],
)
def test_the_id_that_a_proxy_gave_a_call_is_kept_and_no_other_words(
    traced: tuple[services.Stack, Collector], given: str, is_kept: bool
) -> None:
    stack, _ = traced
    answer = httpx2.get(f"http://127.0.0.1:{stack.port}/healthz", headers={"x-request-id": given})
    answered = answer.headers["x-request-id"]
    assert (answered == given) == is_kept

    def of_this_call() -> list[dict[str, Any]]:
        return [line for line in lines(stack, 0) if line.get("request_id") == answered]

    services.wait_until(of_this_call, "a line")
    assert [line["route"] for line in of_this_call()] == ["/healthz"]
    assert is_kept or given not in stack.processes[0].log.read_text()


def test_the_console_has_words_for_people(stack: services.Stack) -> None:
    api = stack.api(PROMPTMILL_LOG_FORMAT="console")
    httpx2.get(f"http://127.0.0.1:{stack.port}/healthz")
    services.wait_until(lambda: "route=/healthz" in api.log.read_text(), "a line")
    assert not api.log.read_text().startswith("{")
