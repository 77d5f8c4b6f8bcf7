"""C1: the whole service with vLLM on the CPU / `LLM.generate` on the same rows, SmolLM2-135M with its real weights.

A side is loaded, measured and ended before the other one is: two cores are too few for both. They take turns.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from measure import ratios, row, spread

ROOT = Path(__file__).resolve().parent.parent
PYTHON, MODEL = ".venv-vllm/bin/python", ".venv-vllm/checkpoints/smollm2"
ENVIRONMENT = {"VLLM_TARGET_DEVICE": "cpu", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
TURNS, ROUNDS = 2, 2
SHAPE, ROWS, SEQUENCES, CONTEXT, STEP_TOKENS = "translation", 48, 16, 2_048, 2_048


def report() -> Iterator[str]:
    ours, generated = [], []
    with tempfile.TemporaryDirectory() as out:
        for _ in range(TURNS):
            ours += _ours(Path(out))
            generated += _generated(Path(out))
    figures = spread(ours, " tok/s", 0), spread(generated, " tok/s", 0), spread(ratios(ours, generated))
    yield row("C1 vLLM on the CPU / LLM.generate", f"{ROWS} rows, {SHAPE}", *figures, wanted="0.80 / 0.95")


def _ours(out: Path) -> list[float]:
    """Return output tokens/s of the whole service, for each round."""
    options = {
        "model": MODEL,
        "dtype": "float32",
        "memory-share": 0.2,
        "sequences": SEQUENCES,
        "context": CONTEXT,
        "step-tokens": STEP_TOKENS,
        "scenarios": f"G4:{ROWS}:{ROUNDS}",
        "worker-python": PYTHON,
        "out": out,
    }
    _program([sys.executable, "bench/gpu.py", "--eager", *(f"--{name}={value}" for name, value in options.items())])
    results = json.loads((out / "results.json").read_text())
    return [each["output_tokens"] / each["seconds"] for each in results if each["side"] == "ours"][-ROUNDS:]


def _generated(out: Path) -> list[float]:
    """Return output tokens/s of `LLM.generate` on the same rows with the same arguments, for each round."""
    arguments = {
        "dtype": "float32",
        "enforce_eager": True,
        "gpu_memory_utilization": 0.2,
        "max_num_seqs": SEQUENCES,
        "max_model_len": CONTEXT,
        "max_num_batched_tokens": STEP_TOKENS,
    }
    rows = next(out.glob(f"*-{ROWS}-0.jsonl"))
    printed = _program(
        [PYTHON, "bench/gpu_llm.py", "--model", MODEL, "--rows", str(rows), "--arguments", json.dumps(arguments)]
    )
    figures = [line.partition(" ")[2] for line in printed.splitlines() if line.startswith("LLM.generate")]
    return [json.loads(each)["rate"] for each in figures]


def _program(argv: list[str]) -> str:
    """Run a program to its end; return what it printed."""
    done = subprocess.run(
        argv, cwd=ROOT, env={**os.environ, **ENVIRONMENT}, check=False, text=True, capture_output=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-2_000:] + done.stderr[-2_000:]
    return done.stdout
