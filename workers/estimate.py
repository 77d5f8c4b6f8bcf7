"""What a worker's settings come to: the arguments of its engine, and what fits into the GPU.

No GPU, no engine and no database is asked. `workers/dry_run.py` shows it.
"""

import re
import shlex
import shutil
import statistics
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

from pydantic import JsonValue

from jobs.errors import ConfigurationError
from jobs.settings import Worker
from workers.engines import kv, shapes
from workers.engines.kv import GIB, Pool, Slots
from workers.engines.shapes import Shape
from workers.engines.vllm_arguments import command, serve_arguments

# Prompt and answer, tokens: a sentence and a paragraph to translate, a chat, a chat with history, the usual benchmark,
# a book.
LENGTHS = "110/32,150/95,220/200,1155/211,1024/512,128000/1000"
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:GB|GiB|G)?", re.IGNORECASE)
_LENGTH = re.compile(r"(\d+)/(\d+)")
# Beyond these `max_sequences` is far from what fits. Too many waste memory and preempt rows, too few idle the GPU.
_FAR_ABOVE, _FAR_BELOW = 2.0, 0.5


@dataclass(frozen=True)
class Rows:
    """How many rows of one length fit."""

    prompt: int
    answer: int
    at_end: int | None
    """When all have their whole answer: so many never wait for each other. None: longer than the context."""
    on_average: int | None
    """When they are spread over their answers, as in the middle of a batch."""


@dataclass(frozen=True)
class Report:
    """Everything that is shown."""

    engine: str
    arguments: dict[str, JsonValue]
    command: str
    shape: Shape
    gpu: str
    memory: Pool | Slots
    rows: list[Rows]
    notes: list[str]
    warnings: list[str]


def gpu_bytes(given: str | None, worker: Worker) -> tuple[int, str]:
    """Return the memory of one GPU and where the figure comes from: the option, the settings, or this machine.

    Raises:
        ConfigurationError: none of them says.
    """
    if given is not None:
        if not (match := _SIZE.fullmatch(given)):
            message = f"--gpu-memory {given} is no size. Say it like 80GB, in GB as makers of GPUs count them: 2^30."
            raise ConfigurationError(message)
        return int(float(match[1]) * GIB), "--gpu-memory"
    if worker.gpu_memory_gib is not None:
        return int(worker.gpu_memory_gib * GIB), "worker.gpu_memory_gib"
    if (found := _smallest_gpu()) is not None:
        return found, "nvidia-smi"
    message = "How much memory has the GPU? Name it: --gpu-memory 80GB."
    raise ConfigurationError(message)


def _smallest_gpu() -> int | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False)  # noqa: S603  no words of others
    sizes = [int(line) for line in answer.stdout.split() if line.isdecimal()]
    return min(sizes) * 2**20 if sizes else None


def parse_lengths(text: str) -> list[tuple[int, int]]:
    """Return the pairs of `110/32,1024/512`: tokens of prompt and answer.

    Raises:
        ConfigurationError: it is no list of pairs.
    """
    matches = [_LENGTH.fullmatch(part.strip()) for part in text.split(",")]
    pairs = [(int(match[1]), int(match[2])) for match in matches if match]
    if len(pairs) != len(matches) or not all(map(sum, pairs)):
        message = f"--lengths {text}: say it like 110/32,1024/512, tokens of the prompt and of the answer."
        raise ConfigurationError(message)
    return pairs


def report(worker: Worker, *, gpu_memory: str | None = None, lengths: str = LENGTHS) -> Report:
    """Return what the settings come to.

    Raises:
        ConfigurationError: the engine has no such arithmetic, or model or GPU are not known.
    """
    pairs = parse_lengths(lengths)
    if worker.engine == "vllm":
        return _vllm_report(worker, *gpu_bytes(gpu_memory, worker), pairs)
    if worker.engine == "llamacpp" and worker.llamacpp.gpu_layers:
        return _llamacpp_report(worker, *gpu_bytes(gpu_memory, worker), pairs)
    message = f"There is nothing to reckon: the engine {worker.engine!r} uses no GPU with these settings."
    raise ConfigurationError(message)


def _vllm_report(worker: Worker, size: int, size_from: str, pairs: list[tuple[int, int]]) -> Report:
    settings, shape = worker.vllm, shapes.of_model(worker.vllm.model)
    pool = kv.pool(shape, settings, size)
    arguments = serve_arguments(settings)
    rows = [_rows(pool, prompt, answer) for prompt, answer in pairs]
    return Report(
        engine="vllm",
        arguments=arguments,
        command=shlex.join(command(arguments)),
        shape=shape,
        gpu=size_from,
        memory=pool,
        rows=rows,
        notes=[*_vllm_notes(worker, shape, pool)],
        warnings=[*_vllm_warnings(worker, pool, rows)],
    )


def _rows(pool: Pool, prompt: int, answer: int) -> Rows:
    if prompt + answer > pool.context_tokens:
        return Rows(prompt, answer, None, None)
    return Rows(prompt, answer, pool.rows(prompt + answer), pool.rows(prompt + answer // 2 or 1))


def _vllm_notes(worker: Worker, shape: Shape, pool: Pool) -> Iterable[str]:
    settings = worker.vllm
    yield f"Weights: {_weights(worker, shape)}."
    yield (
        f"A step's memory is an estimate: 1.4 GiB for libraries and CUDA graphs, and the most that activations "
        f"({settings.step_tokens} tokens), sampling ({settings.max_sequences} rows) or images take. Gemma 3 27B on one "
        "H100 with vLLM 0.26 came out 1.6 % above the measured pool with bf16 weights, 0.8 % below it with FP8."
    )
    yield (
        f"vLLM will log a pool of about {pool.reported_tokens} tokens: it counts rows of the whole context, when they "
        "need most. Rows that fit are counted here in blocks of 16 tokens, as it hands them out, without "
        "shared beginnings, which take their memory once."
    )
    if settings.adapters or settings.arguments:
        yield "Adapters take memory besides, and further arguments may change all of this: neither is counted."
    gpus = settings.tensor_parallel * settings.pipeline_parallel
    if gpus * settings.replicas > 1:
        yield f"Bytes are those of one GPU, rows those of one replica, on {gpus} GPUs. Replicas: {settings.replicas}."


def _weights(worker: Worker, shape: Shape) -> str:
    if worker.vllm.quantization == "fp8":
        return "FP8, made while loading"
    if shape.file_bytes:
        return "the size of the files"
    if shape.weight_bits:
        return f"{shape.weight_bits:g} bits in the layers, as the config says"
    return "not quantised, as nothing says that they are"


def _vllm_warnings(worker: Worker, pool: Pool, rows: list[Rows]) -> Iterable[str]:
    most = [row.on_average for row in rows if row.on_average is not None]
    limit = worker.vllm.max_sequences
    if pool.kv_bytes <= 0:
        yield f"The weights do not fit: {gib(-pool.kv_bytes)} are missing before the first key and value."
    elif pool.rows(pool.context_tokens) == 0:
        yield f"Not one row of {pool.context_tokens} tokens fits; vLLM will not start. Lower context_tokens."
    elif most and limit > _FAR_ABOVE * max(most):
        yield f"max_sequences {limit} is far above the {max(most)} rows that fit at the shortest of these lengths."
    elif most and limit < _FAR_BELOW * statistics.median(most):
        yield f"max_sequences {limit} is far below the {statistics.median(most):.0f} rows that fit at typical lengths."


def _llamacpp_report(worker: Worker, size: int, size_from: str, pairs: list[tuple[int, int]]) -> Report:
    settings = worker.llamacpp
    path = settings.model_path
    if path is None:
        message = "worker.llamacpp.model_path is not set."
        raise ConfigurationError(message)
    shape = shapes.of_gguf(path)
    memory = kv.slots(shape, settings, size)
    fits = [None if sum(pair) > settings.context_tokens else settings.parallel_requests for pair in pairs]
    arguments: dict[str, JsonValue] = settings.model_dump(mode="json", exclude_none=True)
    missing = f"It does not fit: {gib(-memory.left_bytes)} are missing."
    return Report(
        engine="llamacpp",
        arguments=arguments,
        command="",
        shape=shape,
        gpu=size_from,
        memory=memory,
        rows=[Rows(prompt, answer, number, number) for (prompt, answer), number in zip(pairs, fits, strict=True)],
        notes=[
            f"Weights: {'size of the file' if shape.file_bytes else 'estimated by the name of the file'}.",
            "All layers on the GPU, keys and values in 16 bits. A step's memory is an estimate: 1.1 GiB.",
            "An image projector takes its file's size more (Gemma 3: 0.8 GiB).",
        ],
        warnings=[missing] if memory.left_bytes < 0 else [],
    )


def gib(size: int) -> str:
    """Return bytes as people read them."""
    return f"{size / GIB:.1f} GiB"
