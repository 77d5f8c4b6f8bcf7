"""docs/guides/openai-sdk.md, as one program: a small real model, and the scripted engine for what that cannot do."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import documented
import pytest
import services
from pictures import encoded

PAGE = "docs/guides/openai-sdk.md"
STAND_INS = ["gemma-3-27b-it", "embeddinggemma-300m"]


@pytest.fixture
def stack(servers: services.Servers, template: str, tmp_path: Path) -> Iterator[services.Stack]:
    with services.fresh_stack(servers, template, tmp_path, services.LONG_LEASES) as made:
        made.api()
        made.reconciler()
        made.worker(PROMPTMILL_WORKER__ENGINE="llamacpp")
        made.worker(PROMPTMILL_WORKER__ENGINE="scripted", PROMPTMILL_WORKER__SCRIPTED_MODELS=json.dumps(STAND_INS))
        yield made


def program() -> str:
    return "\n".join(documented.blocks(PAGE, "python"))


def test_the_guide_for_the_sdk_runs(stack: services.Stack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What a model says is up to it: the shapes are what counts."""
    monkeypatch.setenv("OPENAI_BASE_URL", stack.base_url)
    monkeypatch.setenv("OPENAI_API_KEY", stack.key("guides"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photo.png").write_bytes(encoded())
    did: dict[str, Any] = {}
    exec(compile(program(), PAGE, "exec"), did)
    did["client"].close()
    assert (did["batch"].status, did["batch"].request_counts.completed, did["batch"].request_counts.failed) == (
        "completed",
        2,
        1,
    )
    assert did["failed"]["code"] == "invalid_value"
    assert did["again"].metadata["retry_of"] == did["batch"].id
    assert did["refused"].errors.data[0].code == "duplicate_custom_id"
    for body in did["answers"].values():
        assert set(json.loads(body["choices"][0]["message"]["content"])) == {"sentiment"}
    assert {body["choices"][0]["message"]["content"] for body in did["seen"].values()} == {
        "What is this?[image 64x48 png]"
    }
    assert len(did["vectors"]["both"]["data"]) == 2
    assert did["upload"].file.bytes == (tmp_path / "requests.jsonl").stat().st_size
    assert did["cancelled"].status in ("cancelled", "completed")
