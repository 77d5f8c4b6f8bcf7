"""The whole service with the real vLLM on a CPU: labels with a JSON schema, a kill in the middle, a dead engine.

The API and the reconciler run in this environment, the workers in vLLM's own: `make test-vllm`.
"""

import csv
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import invariants
import psutil
import pytest
import services
from clients import User, done
from payloads import CHAT, jsonl, request
from sqlalchemy import text

from api.stack.program import promptmill

# vLLM takes one to two minutes to start on a CPU that does nothing else, and the first test starts two.
pytestmark = pytest.mark.timeout(900)
PYTHON = os.environ.get("PROMPTMILL_TEST_VLLM_PYTHON", "")
CHECKPOINTS = Path(os.environ.get("PROMPTMILL_TEST_CHECKPOINTS", ""))
# In whatever clients send here, and in no log.
CANARY = "kakapo"
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"label": {"type": "string", "enum": ["spam", "ham"]}},
    "required": ["label"],
    "additionalProperties": False,
    "description": CANARY,
}


def form(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "label", "strict": True, "schema": schema}}


FORM = form(SCHEMA)
SETTINGS = {
    "PROMPTMILL_WORKER__ENGINE": "vllm",
    "PROMPTMILL_WORKER__VLLM__MODEL": str(CHECKPOINTS / "smollm2"),
    "PROMPTMILL_WORKER__VLLM__MODEL_NAME": "smol",
    "PROMPTMILL_WORKER__VLLM__ADAPTERS": json.dumps({"smol-lora": str(CHECKPOINTS / "smollm2-lora")}),
    # On CPUs, rows without an adapter get what is in the last place beside rows that have one; so it is left empty.
    "PROMPTMILL_WORKER__VLLM__ARGUMENTS": json.dumps({"max-loras": 2}),
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
    home = tmp_path_factory.mktemp("stack")
    with services.fresh_stack(servers, template, home, SETTINGS, worker_python=PYTHON, start_seconds=280) as made:
        made.api()
        made.reconciler()
        yield made
        engine = made.engine()
        invariants.check(engine)
        engine.dispose()
        made.stop()
        for log in home.glob("worker-*.log"):
            assert CANARY not in log.read_text(errors="replace").lower()


@pytest.fixture(scope="module")
def worker(stack: services.Stack) -> list[services.Process]:
    """The worker that runs just now, alone in a list."""
    return [stack.worker()]


def label(custom_id: str, prompt: str, **body: Any) -> dict[str, Any]:
    words = f"{CANARY} {prompt}"
    return request(custom_id, words, **{"model": "smol", "response_format": FORM, "max_tokens": 24, **body})


def family(process: services.Process) -> list[psutil.Process]:
    return psutil.Process(process.popen.pid).children(recursive=True)


def core(process: services.Process) -> psutil.Process:
    return next(each for each in family(process) if "EngineCore" in " ".join([each.name(), *each.cmdline()]))


def test_labels_survive_a_kill_and_nothing_is_left_of_the_dead_engine(
    stack: services.Stack, worker: list[services.Process]
) -> None:
    user = User(stack)
    rows = [label(f"row-{number}", f"Win {number} dollars now!", temperature=0) for number in range(120)]
    rows[7]["body"]["messages"][0]["content"] = f"{CANARY} " * 3_000
    rows[9]["body"]["prompt_logprobs"] = CANARY
    rows[11]["body"]["response_format"] = form(SCHEMA | {"properties": {"label": {"$ref": f"#/{CANARY}"}}})
    batch = user.submit(jsonl(rows))
    user.wait_for(batch.id, lambda batch: done(batch) >= 20, 240)
    below = family(worker[0])
    assert core(worker[0]) in below
    worker[0].kill()
    assert done(user.batch(batch.id)) < 120, "it was in the middle"
    psutil.wait_procs(below, timeout=20)
    assert not [process for process in below if process.is_running()], "they would keep the GPU"
    worker[0] = stack.worker()

    batch = user.wait(batch.id, 240)
    assert batch.status == "completed"
    results = user.results(batch)
    assert set(results) == {f"row-{number}" for number in range(120)}
    for custom_id, row in results.items():
        body = row["response"]["body"]
        if custom_id == "row-7":
            assert body["error"]["code"] == "context_length_exceeded"
            assert "512" in body["error"]["message"] and "at least 513" in body["error"]["message"]
        elif custom_id == "row-9":
            assert (body["error"]["code"], body["error"]["param"]) == ("unsupported_parameter", "prompt_logprobs")
        elif custom_id == "row-11":
            assert body["error"]["param"].startswith("response_format.json_schema")
        else:
            assert json.loads(body["choices"][0]["message"]["content"])["label"] in ("spam", "ham")
    assert batch.usage and batch.usage.output_tokens > 117 * 3


def test_a_batch_mixes_a_model_and_its_adapter(stack: services.Stack, worker: list[services.Process]) -> None:
    user = User(stack)
    names = ("smol", "smol-lora")
    rows = [
        request(f"row-{number}", f"{CANARY} Name three rivers.", model=names[number % 2], max_tokens=6, temperature=0)
        for number in range(20)
    ]
    batch = user.wait(user.submit(jsonl(rows), CHAT).id, 240)
    assert batch.status == "completed"
    bodies = {custom_id: row["response"]["body"] for custom_id, row in user.results(batch).items()}
    for number in range(20):
        assert bodies[f"row-{number}"]["model"] == names[number % 2]
    texts = {body["model"]: body["choices"][0]["message"]["content"] for body in bodies.values()}
    assert texts["smol"] != texts["smol-lora"]


def test_the_preset_knows_how_sure_its_labels_are(
    stack: services.Stack, worker: list[services.Process], tmp_path: Path
) -> None:
    """Log-probabilities beside a schema, from the engine to a column of the table."""
    texts = ["I love this kettle.", "It broke on the first day.", f"A {CANARY} is a bird."]
    table = tmp_path / "reviews.csv"
    table.write_text("".join(f"{line}\n" for line in ("review", *texts)))
    asked = ["--column", "review", "--labels", "good,bad", "--model", "smol", "--out", "labelled.csv"]
    client = {"OPENAI_BASE_URL": stack.base_url, "OPENAI_API_KEY": stack.key(), "XDG_CONFIG_HOME": str(tmp_path)}
    ran = subprocess.run(
        [*promptmill("label"), table.name, *asked],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if not name.startswith("PROMPTMILL_")} | client,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    with (tmp_path / "labelled.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["review"] for row in rows] == texts
    assert {row["label"] for row in rows} <= {"good", "bad"}
    assert all(0 < float(row["label_confidence"]) <= 1 for row in rows)
    assert not any(row["error"] for row in rows)


def test_a_worker_without_its_checkpoint_says_so_in_a_line(stack: services.Stack, tmp_path: Path) -> None:
    ran = subprocess.run(
        [PYTHON, *promptmill("worker")[1:]],
        env=stack.environment(PROMPTMILL_WORKER__VLLM__MODEL=str(tmp_path / "nowhere")),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-1].startswith("promptmill: There is no checkpoint at ")
    assert "Traceback" not in ran.stderr


def test_a_dead_engine_ends_the_worker_and_its_rows_run_again(
    stack: services.Stack, worker: list[services.Process]
) -> None:
    """Last here: no worker is left. That the next one goes on is above."""
    user = User(stack)
    # Sixteen at a time, and long: many are left when the first are done.
    story = {"ignore_eos": True, "response_format": None, "max_tokens": 400}
    batch = user.submit(jsonl([label(f"row-{number}", "Tell me a story.", **story) for number in range(160)]))
    user.wait_for(batch.id, lambda batch: done(batch) >= 1, 240)
    core(worker[0]).kill()
    assert worker[0].popen.wait(30) == 70
    batch = user.batch(batch.id)
    assert batch.status == "in_progress"
    assert batch.request_counts and batch.request_counts.failed == 0, "they have no outcome yet"
    engine = stack.engine()
    with engine.connect() as connection:
        words = text("SELECT end_reason FROM attempts JOIN shards ON id = shard_id WHERE batch_id = :batch_id")
        assert "died" in set(connection.execute(words, {"batch_id": batch.id}).scalars())
    engine.dispose()
    user.sdk.batches.cancel(batch.id)
    assert user.wait(batch.id).status == "cancelled"
