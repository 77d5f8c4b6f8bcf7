"""`promptmill worker --dry-run`, as a user runs it: no GPU, no vLLM, no database, no Redis."""

import json
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from api.stack.program import promptmill

FP8, GGUF = "gemma-3-27b-it/h100-fp8", "gemma-3-27b-it/rtx-4090-gguf"


def run(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    # Nobody answers there.
    away = {"PROMPTMILL_DATABASE_URL": "postgresql://127.0.0.1:1/x", "PROMPTMILL_REDIS_URL": "redis://127.0.0.1:1/0"}
    command = promptmill("worker", "--dry-run", *options)
    env = {**os.environ, "COLUMNS": "200", **away, **environment}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)


def report(*options: str, **environment: str) -> dict[str, Any]:
    ended = run("--json", *options, **environment)
    assert ended.returncode == 0, ended.stderr
    document: dict[str, Any] = json.loads(ended.stdout)
    return document


def test_the_page_has_arguments_memory_rows_and_assumptions() -> None:
    ended = run("--profile", FP8)
    assert ended.returncode == 0, ended.stderr
    for shown in ("max-num-batched-tokens", "vllm serve google/gemma-3-27b-it", "26.5 GiB", "508 KB", "82 KB"):
        assert shown in ended.stdout
    for assumption in ("is an estimate", "built in: Gemma 3 27B", "vLLM will log a pool of about"):
        assert assumption in ended.stdout
    assert "Warning" not in ended.stdout


def test_json_has_the_same_in_bytes() -> None:
    made = report("--profile", FP8)
    assert made["arguments"]["quantization"] == "fp8"
    assert shlex.split(made["command"])[:3] == ["vllm", "serve", "google/gemma-3-27b-it"]
    assert made["memory"]["engine_bytes"] == int(int(79.6 * 2**30) * 0.92)
    assert made["memory"]["reported_tokens"] == pytest.approx(81_000, rel=0.03)
    assert [(row["prompt"], row["answer"]) for row in made["rows"]][:2] == [(110, 32), (150, 95)]
    # Longer than the 4,096 tokens of context.
    assert made["rows"][-1] == {"prompt": 128_000, "answer": 1_000, "at_end": None, "on_average": None}


def test_the_lengths_and_the_gpu_are_what_one_says() -> None:
    made = report("--profile", FP8, "--lengths", "1000/8,1/1", "--gpu-memory", "141 GB")
    assert (made["gpu"]["source"], made["gpu"]["bytes"]) == ("--gpu-memory", 141 * 2**30)
    long, short = made["rows"]
    assert 0 < long["at_end"] < short["at_end"]


def test_settings_of_the_environment_count() -> None:
    made = report("--profile", FP8, PROMPTMILL_WORKER__VLLM__KV_CACHE="fp8")
    assert made["arguments"]["kv-cache-dtype"] == "fp8"
    assert made["memory"]["reported_tokens"] > 150_000
    assert report(PROMPTMILL_PROFILE=FP8)["arguments"]["quantization"] == "fp8"


def test_a_checkpoint_on_the_disk_describes_itself(tmp_path: Path) -> None:
    sizes = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32}
    more = {"num_key_value_heads": 8, "vocab_size": 128_256, "max_position_embeddings": 131_072}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **sizes, **more}))
    model = {"PROMPTMILL_WORKER__ENGINE": "vllm", "PROMPTMILL_WORKER__VLLM__MODEL": str(tmp_path)}
    made = report("--gpu-memory", "24GB", **model)
    assert made["memory"]["group_windows"] == [None]
    assert made["memory"]["token_bytes"] == 16 * 2 * 8 * 64 * 2
    assert made["rows"][-1]["at_end"] >= 1


@pytest.mark.parametrize(
    ("environment", "warning"),
    [
        ({"PROMPTMILL_WORKER__VLLM__MAX_SEQUENCES": "2000"}, "max_sequences 2000 is far above"),
        ({"PROMPTMILL_WORKER__VLLM__MAX_SEQUENCES": "16"}, "max_sequences 16 is far below"),
        ({"PROMPTMILL_WORKER__GPU_MEMORY_GIB": "24"}, "The weights do not fit"),
        (
            {"PROMPTMILL_WORKER__VLLM__CONTEXT_TOKENS": "131072", "PROMPTMILL_WORKER__GPU_MEMORY_GIB": "36"},
            "Not one row of 131072 tokens fits",
        ),
    ],
)
def test_what_does_not_fit_is_warned_of(environment: dict[str, str], warning: str) -> None:
    (found,) = report("--profile", FP8, **environment)["warnings"]
    assert found.startswith(warning)


def test_llama_cpp_is_reckoned_too() -> None:
    made = report("--profile", GGUF)
    assert made["engine"] == "llamacpp"
    assert made["memory"]["slots"] == 4
    assert not made["warnings"]
    (warning,) = report("--profile", GGUF, PROMPTMILL_WORKER__LLAMACPP__PARALLEL_REQUESTS="16")["warnings"]
    assert warning.startswith("It does not fit")
    assert "left" in run("--profile", GGUF).stdout


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--profile", "nope"), "Shipped: gemma-3-27b-it/"),
        (("--profile", FP8, "--gpu-memory", "much"), "--gpu-memory much is no size"),
        (("--profile", FP8, "--lengths", "10"), "--lengths 10"),
        (("--profile", FP8, "--lengths", "0/0"), "--lengths 0/0"),
        ((), "There is nothing to reckon"),
    ],
)
def test_a_mistake_is_named(options: tuple[str, ...], reason: str) -> None:
    ended = run(*options)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert reason in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_gpu_of_this_machine_is_looked_at_when_nothing_says_more(tmp_path: Path) -> None:
    model = {"PROMPTMILL_WORKER__ENGINE": "vllm", "PROMPTMILL_WORKER__VLLM__MODEL": "gemma-3-1b-it"}
    without = run(**model, PATH=str(tmp_path))
    assert "--gpu-memory" in without.stderr
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nprintf '81559\\n24564\\n'\n")
    program.chmod(0o755)
    assert report(**model, PATH=str(tmp_path))["gpu"] == {"bytes": 24_564 * 2**20, "source": "nvidia-smi"}
