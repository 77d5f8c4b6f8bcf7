"""The settings of the vLLM engine as arguments of `vllm serve`. Pure, but for the ranks of LoRA adapters on disk."""

import json
from collections.abc import Iterator
from pathlib import Path

from pydantic import JsonValue

from jobs.errors import ConfigurationError
from jobs.settings import Vllm

Arguments = dict[str, JsonValue]

# The ranks that vLLM has kernels for.
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
# Adapters in GPU memory at once; the others wait in main memory. Rows of one adapter come together.
ADAPTERS_AT_ONCE = 4


def serve_arguments(settings: Vllm) -> Arguments:
    """Return the arguments of `vllm serve` by their long names. True is a switch; what is not given is left out.

    Raises:
        ConfigurationError: no model is set, or an adapter's folder holds none.
    """
    if not settings.model:
        message = "There is no model: PROMPTMILL_WORKER__VLLM__MODEL names a checkpoint."
        raise ConfigurationError(message)
    given = _model(settings) | _speed(settings) | _places(settings) | _answers(settings) | _adapters(settings)
    return {name: value for name, value in (given | settings.arguments).items() if value not in (None, False)}


def words(arguments: Arguments) -> list[str]:
    """Return the arguments as words of a command line."""
    return [word for name, value in arguments.items() for word in _words(f"--{name}", value)]


def _words(name: str, value: JsonValue) -> Iterator[str]:
    yield name
    if isinstance(value, list):
        yield from (str(each) for each in value)
    elif isinstance(value, dict):
        yield json.dumps(value)
    elif value is not True:
        yield str(value)


def _model(settings: Vllm) -> Arguments:
    embeds = settings.task == "embed"
    return {
        "model": settings.model,
        "served-model-name": [settings.model_name or settings.model],
        "runner": "pooling" if embeds else "generate",
        "convert": "embed" if embeds else None,
        "dtype": settings.dtype,
        "quantization": None if settings.quantization == "checkpoint" else settings.quantization,
        "kv-cache-dtype": settings.kv_cache,
        "max-model-len": settings.context_tokens,
        "limit-mm-per-prompt": {"image": settings.images_per_request},
    }


def _speed(settings: Vllm) -> Arguments:
    return {
        "max-num-seqs": settings.max_sequences,
        "max-num-batched-tokens": settings.step_tokens,
        "gpu-memory-utilization": settings.gpu_memory_share,
        "enforce-eager": settings.eager,
        "renderer-num-workers": settings.renderer_threads,
    }


def _places(settings: Vllm) -> Arguments:
    return {
        "tensor-parallel-size": settings.tensor_parallel,
        "pipeline-parallel-size": settings.pipeline_parallel,
        "data-parallel-size": settings.replicas,
        "distributed-executor-backend": "ray" if settings.executor == "ray" else None,
    }


def _answers(settings: Vllm) -> Arguments:
    return {
        "chat-template": str(settings.chat_template) if settings.chat_template else None,
        "enable-auto-tool-choice": settings.tool_parser is not None,
        "tool-call-parser": settings.tool_parser,
        "reasoning-parser": settings.reasoning_parser,
        # `usage` tells of cached tokens, as OpenAI's does.
        "enable-prompt-tokens-details": True,
        # Its `auto` stays with the first backend that took a request, whatever the next one needs (vllm#43920).
        # And whatever stands between the values of an answer costs tokens; small models never end.
        "structured-outputs-config": {"backend": "xgrammar", "disable_any_whitespace": True},
    }


def _adapters(settings: Vllm) -> Arguments:
    if not settings.adapters:
        return {}
    return {
        "enable-lora": True,
        "max-lora-rank": max(_rank(folder) for folder in settings.adapters.values()),
        "max-loras": min(len(settings.adapters), ADAPTERS_AT_ONCE),
        "max-cpu-loras": max(len(settings.adapters), ADAPTERS_AT_ONCE),
        "lora-modules": [json.dumps({"name": name, "path": str(path)}) for name, path in settings.adapters.items()],
    }


def _rank(folder: Path) -> int:
    """Return the smallest rank of vLLM's that holds the adapter's."""
    try:
        rank = int(json.loads((folder / "adapter_config.json").read_bytes())["r"])
        return next(each for each in RANKS if rank <= each)
    except (OSError, ValueError, KeyError, StopIteration) as error:
        message = f"{folder} holds no LoRA adapter that vLLM can load: {type(error).__name__}."
        raise ConfigurationError(message) from error
