"""The whole service with the real vLLM on a CPU: labels with a JSON schema, and a kill in the middle.

The API and the reconciler run in this environment, the workers in vLLM's own: `make test-vllm`.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import invariants
import psutil
import pytest
import services
from clients import User, done
from payloads import CHAT, jsonl, request

PYTHON = os.environ.get("PROMPTMILL_TEST_VLLM_PYTHON", "")
CHECKPOINTS = Path(os.environ.get("PROMPTMILL_TEST_CHECKPOINTS", ""))
SCHEMA = {
    "type": "object",
    "properties": {"label": {"type": "string", "enum": ["spam", "ham"]}},
    "required": ["label"],
    "additionalProperties": False,
}
FORM = {"type": "json_schema", "json_schema": {"name": "label", "strict": True, "schema": SCHEMA}}
SETTINGS = {
    **services.SHORT_LEASES,
    "PROMPTMILL_WORKER__ENGINE": "vllm",
    "PROMPTMILL_WORKER__VLLM__MODEL": str(CHECKPOINTS / "smollm2"),
    "PROMPTMILL_WORKER__VLLM__MODEL_NAME": "smol",
    "PROMPTMILL_WORKER__VLLM__ADAPTERS": json.dumps({"smol-lora": str(CHECKPOINTS / "smollm2-lora")}),
    "PROMPTMILL_WORKER__VLLM__DTYPE": "float32",
    "PROMPTMILL_WORKER__VLLM__EAGER": "true",
    "PROMPTMILL_WORKER__VLLM__CONTEXT_TOKENS": "512",
    "PROMPTMILL_WORKER__VLLM__MAX_SEQUENCES": "16",
    "PROMPTMILL_WORKER__VLLM__GPU_MEMORY_SHARE": "0.2",
}


@pytest.fixture(scope="module")
def stack(
    servers: services.Servers, template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[services.Stack]:
    with services.fresh_database(servers, template) as name:
        home, url = tmp_path_factory.mktemp("stack"), servers.database(name)
        made = services.Stack(home, url, servers.redis_url, SETTINGS, worker_python=PYTHON, start_seconds=280)
        with made.redis() as broker:
            broker.flushall()
        try:
            made.api()
            made.reconciler()
            yield made
            engine = made.engine()
            invariants.check(engine)
            engine.dispose()
        finally:
            made.stop()


@pytest.fixture(scope="module")
def worker(stack: services.Stack) -> Iterator[list[services.Process]]:
    """The worker that runs just now, alone in a list."""
    return iter([[start(stack)]])


def start(stack: services.Stack) -> services.Process:
    return stack.worker()


def label(custom_id: str, text: str, **body: Any) -> dict[str, Any]:
    return request(custom_id, text, model="smol", response_format=FORM, max_tokens=24, temperature=0, **body)


def test_labels_survive_a_kill_and_nothing_is_left_of_the_dead_engine(
    stack: services.Stack, worker: list[services.Process]
) -> None:
    user = User(stack)
    rows = [label(f"row-{number}", f"Win {number} dollars now!") for number in range(160)]
    rows[7]["body"]["messages"][0]["content"] = "word " * 3_000
    rows[9]["body"]["prompt_logprobs"] = 5
    batch = user.submit(jsonl(rows))
    user.wait_for(batch.id, lambda batch: done(batch) >= 24, 120)
    below = psutil.Process(worker[0].popen.pid).children(recursive=True)
    assert any("EngineCore" in " ".join([process.name(), *process.cmdline()]) for process in below)
    worker[0].kill()
    assert done(user.batch(batch.id)) < 160, "it was in the middle"
    psutil.wait_procs(below, timeout=20)
    assert not [process for process in below if process.is_running()], "they would keep the GPU"
    worker[0] = start(stack)

    batch = user.wait(batch.id, 240)
    assert batch.status == "completed"
    results = user.results(batch)
    assert set(results) == {f"row-{number}" for number in range(160)}
    for custom_id, row in results.items():
        body = row["response"]["body"]
        if custom_id == "row-7":
            assert body["error"]["code"] == "context_length_exceeded"
            assert "512" in body["error"]["message"] and "at least 513" in body["error"]["message"]
        elif custom_id == "row-9":
            assert (body["error"]["code"], body["error"]["param"]) == ("unsupported_parameter", "prompt_logprobs")
        else:
            assert json.loads(body["choices"][0]["message"]["content"])["label"] in ("spam", "ham")
    assert batch.usage and batch.usage.output_tokens > 158 * 3


def test_a_batch_mixes_a_model_and_its_adapter(stack: services.Stack, worker: list[services.Process]) -> None:
    user = User(stack)
    names = ("smol", "smol-lora")
    rows = [
        request(f"row-{number}", "Name three rivers.", model=names[number % 2], max_tokens=6, temperature=0)
        for number in range(20)
    ]
    batch = user.wait(user.submit(jsonl(rows), CHAT).id, 120)
    assert batch.status == "completed"
    bodies = {custom_id: row["response"]["body"] for custom_id, row in user.results(batch).items()}
    for number in range(20):
        assert bodies[f"row-{number}"]["model"] == names[number % 2]
    texts = {body["model"]: body["choices"][0]["message"]["content"] for body in bodies.values()}
    assert texts["smol"] != texts["smol-lora"]
