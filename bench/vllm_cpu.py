"""C1: the whole service with vLLM on the CPU / `LLM.generate` on the same rows, SmolLM2-135M with its real weights.

A side is loaded, measured and ended before the other one is: two cores are too few for both.
"""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from measure import ratios, row, spread
from payloads import jsonl, request
from plane import ROOT, Plane

PYTHON, MODEL = ".venv-vllm/bin/python", ".venv-vllm/checkpoints/smollm2"
ENVIRONMENT = {"VLLM_TARGET_DEVICE": "cpu", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
# After one that does not count. bench/gpu_llm.py has as many.
ROUNDS = 2
ROWS, ANSWER_TOKENS, SEQUENCES, CONTEXT, STEP_TOKENS = 48, 32, 16, 512, 2_048


def report(plane: Plane) -> Iterator[str]:
    rows = plane.stack.home / "rows.jsonl"
    limits = {"max_tokens": ANSWER_TOKENS, "ignore_eos": True, "temperature": 0}
    prompts = (f"Say something about the number {number}, and why people like it." for number in range(ROWS))
    rows.write_bytes(jsonl(request(str(at), prompt, model="smol", **limits) for at, prompt in enumerate(prompts)))
    ours, generated = _ours(plane, rows), _generated(rows)
    figures = spread(ours, " tok/s", 0), spread(generated, " tok/s", 0), spread(ratios(ours, generated))
    load = f"{ROWS} rows, {ANSWER_TOKENS} tokens each"
    yield row("C1 vLLM on the CPU / LLM.generate", load, *figures, wanted="0.80 / 0.95")


def _ours(plane: Plane, rows: Path) -> list[float]:
    """Return output tokens/s of the whole service, for each round."""
    engine = {
        "MODEL": MODEL,
        "MODEL_NAME": "smol",
        "DTYPE": "float32",
        "EAGER": "true",
        "GPU_MEMORY_SHARE": "0.2",
        "MAX_SEQUENCES": str(SEQUENCES),
        "CONTEXT_TOKENS": str(CONTEXT),
        "STEP_TOKENS": str(STEP_TOKENS),
    }
    own = plane.beside(WORKER__ENGINE="vllm", **{f"WORKER__VLLM__{name}": value for name, value in engine.items()})
    own.stack.worker_python, own.stack.start_seconds = PYTHON, 300
    own.stack.worker(**ENVIRONMENT)
    file_id = own.upload(rows.read_bytes())
    rates = [ROWS * ANSWER_TOKENS / own.run(file_id)[1] for _ in range(1 + ROUNDS)]
    own.close()
    return rates[1:]


def _generated(rows: Path) -> list[float]:
    """Return output tokens/s of `LLM.generate` on the same rows with the same arguments, for each round."""
    arguments = {
        "dtype": "float32",
        "enforce_eager": True,
        "gpu_memory_utilization": 0.2,
        "max_num_seqs": SEQUENCES,
        "max_model_len": CONTEXT,
        "max_num_batched_tokens": STEP_TOKENS,
    }
    argv = [PYTHON, "bench/gpu_llm.py", "--model", MODEL, "--rows", str(rows), "--arguments", json.dumps(arguments)]
    done = subprocess.run(
        argv, cwd=ROOT, env={**os.environ, **ENVIRONMENT}, check=False, text=True, capture_output=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    figures = [line.partition(" ")[2] for line in done.stdout.splitlines() if line.startswith("LLM.generate")]
    return [float(json.loads(each)["rate"]) for each in figures]
