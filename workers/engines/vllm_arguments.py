"""The settings of the vLLM engine as arguments of `vllm serve`. Pure, but for the ranks of LoRA adapters on disk."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import JsonValue

from jobs.errors import ConfigurationError
from jobs.settings import Vllm

Arguments = dict[str, JsonValue]

# What `docs/vllm-advisories.md` rests on: none of these is ever given to vLLM, and so none may be set by hand.
NEVER = {
    "trust-remote-code": "it runs code of the model's author",
    "trust-request-chat-template": "clients could send programs",
    "trust-request-mm-kwargs": "clients could set what images are read with",
    "enable-prompt-embeds": "clients could send tensors",
    "enable-mm-embeds": "clients could send tensors",
    "allowed-local-media-path": "vLLM would read files that clients name",
    "allowed-media-domains": "vLLM would fetch what clients name",
    "kv-transfer-config": "processes would send each other pickles over the network",
    "ec-transfer-config": "processes would send each other pickles over the network",
    "kv-events-config": "what clients sent would be published on a socket",
    "profiler-config": "it writes files while it serves",
    "config": "it names further arguments, which nobody has seen",
}

# The ranks that vLLM has kernels for.
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
# Adapters in GPU memory at once; the others wait in main memory. Rows of one adapter come together.
ADAPTERS_AT_ONCE = 4


def serve_arguments(settings: Vllm) -> Arguments:
    """Return the arguments of `vllm serve` by their long names. True and False are a switch; what is None is left out.

    Those of `settings.arguments` win, written with `_` or with `-`. All names exist in vLLM 0.26, 0.31 and 0.33.

    Raises:
        ConfigurationError: no model is set, an adapter's folder holds none, or an argument is one of `NEVER`.
    """
    if not settings.model:
        message = "There is no model: PROMPTMILL_WORKER__VLLM__MODEL names a checkpoint."
        raise ConfigurationError(message)
    given = _model(settings) | _speed(settings) | _places(settings) | _answers(settings) | _adapters(settings)
    further = {name.replace("_", "-").lstrip("-"): value for name, value in settings.arguments.items()}
    _refuse(name for name, value in further.items() if value is not None and value is not False)
    return {name: value for name, value in (given | further).items() if value is not None}


def _refuse(names: Iterable[str]) -> None:
    """Raise `ConfigurationError` for the first that is in `NEVER`, also in part: vLLM's parser takes abbreviations."""
    for name in names:
        start = name.partition("=")[0].partition(".")[0].rstrip("+")
        if found := next((each for each in NEVER if start and each.startswith(start)), None):
            message = f"worker.vllm.arguments may not have '{found}': {NEVER[found]}."
            raise ConfigurationError(message)


def words(arguments: Arguments) -> list[str]:
    """Return the arguments as words of a command line."""
    return [word for name, value in arguments.items() for word in _words(name, value)]


def command(arguments: Arguments) -> list[str]:
    """Return the command line that starts the same engine as a server; it takes the model without a name."""
    named = {name: value for name, value in arguments.items() if name != "model"}
    return ["vllm", "serve", str(arguments["model"]), *words(named)]


def _words(name: str, value: JsonValue) -> Iterator[str]:
    if isinstance(value, bool):
        yield f"--{name}" if value else f"--no-{name}"
    elif isinstance(value, list):
        yield f"--{name}"
        yield from (_plain(name, str(each)) for each in value)
    else:
        # In one word: it may begin with a dash.
        yield f"--{name}={json.dumps(value) if isinstance(value, dict) else value}"


def _plain(name: str, word: str) -> str:
    """Return a value of a list, unless it would be taken for an argument of its own."""
    if word.startswith("-"):
        message = f"{word}, a value of {name} in worker.vllm.arguments, begins like an argument."
        raise ConfigurationError(message)
    return word


def _model(settings: Vllm) -> Arguments:
    embeds = settings.task == "embed"
    return {
        "model": settings.model,
        "revision": settings.revision,
        # Of a checkpoint that offers pickles too, vLLM would take those if the other files are not there.
        "load-format": "safetensors",
        "served-model-name": [settings.model_name or settings.model],
        "runner": "pooling" if embeds else "generate",
        "convert": "embed" if embeds else None,
        "dtype": settings.dtype,
        "quantization": None if settings.quantization == "checkpoint" else settings.quantization,
        "kv-cache-dtype": settings.kv_cache,
        "max-model-len": settings.context_tokens,
        # Requests carry images at most; memory would be kept for the others.
        "limit-mm-per-prompt": {"image": settings.images_per_request, "video": 0, "audio": 0},
    }


def _speed(settings: Vllm) -> Arguments:
    return {
        "max-num-seqs": settings.max_sequences,
        "max-num-batched-tokens": settings.step_tokens,
        "gpu-memory-utilization": settings.gpu_memory_share,
        "enforce-eager": settings.eager or None,
        "renderer-num-workers": settings.renderer_threads,
    }


def _places(settings: Vllm) -> Arguments:
    return {
        "tensor-parallel-size": settings.tensor_parallel,
        "pipeline-parallel-size": settings.pipeline_parallel,
        "data-parallel-size": settings.replicas,
        "distributed-executor-backend": "ray" if settings.executor == "ray" else None,
        "data-parallel-backend": "ray" if settings.executor == "ray" and settings.replicas > 1 else None,
    }


def _answers(settings: Vllm) -> Arguments:
    return {
        "chat-template": str(settings.chat_template) if settings.chat_template else None,
        "enable-auto-tool-choice": True if settings.tool_parser else None,
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
