"""The texts are those of the bare engine: `LLM.chat` on the same weights at temperature 0."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from subjects import CHAT, CHECKPOINTS, started

SUBJECTS = ("a river", "the moon", "bread", "a clock", "winter", "iron", "an island", "paper", "the sea", "a bridge")
QUESTIONS = [f"Tell me of {subject}." for subject in SUBJECTS] + [
    f"Is this good or bad? {subject} that broke on the first day." for subject in SUBJECTS
]
TOKENS = 24
# As little of ours as can be: neither settings nor the plugin.
BARE = """
import json, sys
from vllm import LLM, SamplingParams
model, tokens, questions = json.load(sys.stdin)
llm = LLM(model, dtype="float32", enforce_eager=True, max_model_len=512, gpu_memory_utilization=0.2)
chats = [[{"role": "user", "content": question}] for question in questions]
outputs = llm.chat(chats, SamplingParams(temperature=0, max_tokens=tokens), use_tqdm=False)
answers = [[output.outputs[0].text, len(output.prompt_token_ids)] for output in outputs]
print("\\nANSWERS" + json.dumps(answers), flush=True)
"""


def bare(model: Path) -> list[Any]:
    """Return the text and the number of prompt tokens for each question."""
    asked = json.dumps([str(model), TOKENS, QUESTIONS])
    environment = {**os.environ, "VLLM_PLUGINS": "", "VLLM_WORKER_MULTIPROC_METHOD": "spawn"}
    ran = subprocess.run(
        [sys.executable, "-c", BARE], input=asked, env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    (line,) = [line for line in ran.stdout.splitlines() if line.startswith("ANSWERS")]
    found: list[Any] = json.loads(line.removeprefix("ANSWERS"))
    return found


def ours(model: Path) -> list[Any]:
    with started(model=str(model), model_name="smol") as subject:

        async def all_at_once() -> list[Any]:
            bodies = [
                {
                    "model": "smol",
                    "messages": [{"role": "user", "content": question}],
                    "max_tokens": TOKENS,
                    "temperature": 0,
                }
                for question in QUESTIONS
            ]
            return await asyncio.gather(*(subject.engine.run(CHAT, body) for body in bodies))

        answers = subject.do(all_at_once())
    return [[answer["choices"][0]["message"]["content"], answer["usage"]["prompt_tokens"]] for answer in answers]


def test_texts_are_those_of_the_bare_engine() -> None:
    model = CHECKPOINTS / "smollm2"
    assert ours(model) == bare(model)
