"""What of vLLM the adapter uses, wherever the supported releases (0.26 to 0.33) keep it. They moved some of it."""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from jobs.errors import ConfigurationError

if find_spec("vllm") is None:
    MISSING = "vLLM is not installed beside this worker: docs/gpu.md says how."
    raise ConfigurationError(MISSING)


def first(*places: str) -> Any:
    """Return the first of the `module:name` that exists, the newest place first."""
    for place in places:
        module, name = place.split(":")
        try:
            return getattr(import_module(module), name)
        except (ModuleNotFoundError, AttributeError):
            continue
    message = f"This release of vLLM is not supported: it has no {places[0]}. 0.26 to 0.33 are."
    raise ConfigurationError(message)


AsyncEngineArgs = first("vllm.engine.arg_utils:AsyncEngineArgs")
AsyncLLM = first("vllm.v1.engine.async_llm:AsyncLLM")
FlexibleArgumentParser = first("vllm.utils.argparse_utils:FlexibleArgumentParser")
UsageContext = first("vllm.usage.usage_lib:UsageContext")
StatLoggerBase = first("vllm.v1.metrics.loggers:StatLoggerBase")
EngineDeadError = first("vllm.v1.engine.exceptions:EngineDeadError")
VLLMValidationError = first("vllm.exceptions:VLLMValidationError")
add_serve_arguments = first(
    "vllm.entrypoints.common.cli_args:make_arg_parser",
    "vllm.entrypoints.launchers.cli_args:make_arg_parser",
    "vllm.entrypoints.openai.cli_args:make_arg_parser",
)
init_app_state = first(
    "vllm.entrypoints.launchers.api_server.app_state:init_app_state",
    "vllm.entrypoints.openai.api_server:init_app_state",
)
create_error_response = first(
    "vllm.entrypoints.serve.exception_handling.error_response:create_error_response",
    "vllm.entrypoints.serve.utils.error_response:create_error_response",
)
ErrorResponse = first(
    "vllm.entrypoints.serve.engine.protocol:ErrorResponse", "vllm.entrypoints.openai.engine.protocol:ErrorResponse"
)
ChatCompletionRequest = first("vllm.entrypoints.openai.chat_completion.protocol:ChatCompletionRequest")
CompletionRequest = first("vllm.entrypoints.openai.completion.protocol:CompletionRequest")
EmbeddingCompletionRequest = first("vllm.entrypoints.pooling.embed.protocol:EmbeddingCompletionRequest")
