"""The settings in the words of `vllm serve`. Seen in vLLM 0.26, 0.31 and 0.33: the names are the same in all three."""

import json

from pydantic import JsonValue

from jobs.settings import Vllm

# Of what vLLM's models take besides text, requests of the Batch API carry images only.
_NOT_TAKEN = {"video": 0, "audio": 0}
_RUNNERS: dict[str, JsonValue] = {"generate": "generate", "embed": "pooling"}


def serve_arguments(settings: Vllm) -> dict[str, JsonValue]:
    """Return the arguments of `vllm serve`, by their long name without dashes in front.

    `model` is the positional one. `settings.arguments` win over what the other settings say; an argument that is
    `None` there is left out. Names may be written with `_` or `-`.
    """
    arguments = _model(settings) | _memory(settings) | _devices(settings) | _adapters(settings)
    arguments |= {name.replace("_", "-").lstrip("-"): value for name, value in settings.arguments.items()}
    return {name: value for name, value in arguments.items() if value is not None}


def serve_words(arguments: dict[str, JsonValue]) -> list[str]:
    """Return `arguments` as words of a command line, those after `vllm serve`."""
    options = dict(arguments)
    words = [str(options.pop("model"))] if "model" in options else []
    for name, value in options.items():
        words += _words(name, value)
    return words


def _model(settings: Vllm) -> dict[str, JsonValue]:
    return {
        "model": settings.model,
        "served-model-name": settings.model_name or settings.model,
        "runner": _RUNNERS[settings.task],
        "dtype": settings.dtype,
        "quantization": None if settings.quantization == "checkpoint" else settings.quantization,
        "limit-mm-per-prompt": {"image": settings.images_per_request, **_NOT_TAKEN},
    }


def _memory(settings: Vllm) -> dict[str, JsonValue]:
    return {
        "max-model-len": settings.context_tokens,
        "max-num-seqs": settings.max_sequences,
        "max-num-batched-tokens": settings.step_tokens,
        "gpu-memory-utilization": settings.gpu_memory_share,
        "kv-cache-dtype": settings.kv_cache,
        "enforce-eager": settings.eager or None,
    }


def _devices(settings: Vllm) -> dict[str, JsonValue]:
    """Return how the GPUs are used. Without Ray vLLM chooses: no further process for one GPU, one each for several."""
    ray = settings.executor == "ray"
    return {
        "tensor-parallel-size": settings.tensor_parallel,
        "pipeline-parallel-size": settings.pipeline_parallel,
        "data-parallel-size": settings.replicas,
        "distributed-executor-backend": "ray" if ray else None,
        "data-parallel-backend": "ray" if ray and settings.replicas > 1 else None,
    }


def _adapters(settings: Vllm) -> dict[str, JsonValue]:
    """Return the LoRA arguments. As many adapters as there are may be in one step: a batch may mix them."""
    if not settings.adapters:
        return {}
    modules: list[JsonValue] = [{"name": name, "path": str(path)} for name, path in settings.adapters.items()]
    return {"enable-lora": True, "max-loras": len(modules), "lora-modules": modules}


def _words(name: str, value: JsonValue) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    if isinstance(value, list):
        return [f"--{name}", *map(_word, value)]
    return [f"--{name}={_word(value)}"]


def _word(value: JsonValue) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
