"""vLLM on GPUs (and on CPUs, for tests): the engine that the product is for.

The engine core is a process of its own; this one holds vLLM's front end. Requests go through the serving layer of
`vllm serve`, the way its own batch runner does, so that a row means what it means there: chat template, tools, schemas,
images, adapters, log-probabilities. They are put together from checked parameters and never stream, so vLLM gives one
output a request, at its end.
"""

import asyncio
import hashlib
import hmac
import os
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextvars import ContextVar
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec

from jobs import telemetry
from jobs.errors import ConfigurationError, EngineFatal
from jobs.protocol import CHAT, COMPLETIONS, EMBEDDINGS
from jobs.settings import Vllm
from workers.engines import sandbox_child, vllm_arguments, vllm_errors, vllm_parameters, vllm_processes
from workers.engines.base import Body, Load, ProgressWatch
from workers.engines.sandbox import Sandbox

# Read by vLLM when it is imported, which is the next thing.
vllm_processes.prepare()

from workers.engines import vllm_api  # noqa: E402

log = telemetry.get_logger(__name__)

# The most and the fewest tokens of the answer of the request now being handed over, as its client has them.
_asked: ContextVar[tuple[int | None, int]] = ContextVar("asked", default=(None, 0))

# What the first request of a model says. The answer is of no interest; a model without a chat template completes too.
# Of its schema vLLM's compiler keeps the parts, as the sandbox does of the same.
_FIRST: Body = {
    "prompt": "Yes or no? ",
    "max_tokens": 4,
    "response_format": {"type": "json_schema", "json_schema": {"name": "first", "schema": sandbox_child.PARTS}},
}
FIRST_SECONDS = 120

Serve = Callable[[Any], Awaitable[Any]]


class VllmEngine:
    """One checkpoint and its adapters, as many requests at once as the GPU holds."""

    name = "vllm"

    def __init__(self, settings: Vllm, *, stall_seconds: float) -> None:
        self._settings = settings
        self._progress = ProgressWatch(stall_seconds)
        # The prefix cache lives and dies with this process, so its secret does too.
        self._secret = secrets.token_bytes(32)
        self.steps = Steps(self._progress.advance)
        self.llm: Any = None
        self._sandbox: Sandbox | None = None

    async def start(self) -> None:
        arguments = vllm_arguments.serve_arguments(self._settings)
        _check_there(self._settings.model)
        log.info("vllm_arguments", arguments={name: _shown(name, value) for name, value in arguments.items()})
        try:
            await self._load(vllm_arguments.words(arguments))
            if self._settings.task == "generate":
                await self._warm_up()
        except BaseException as error:
            await self.stop()
            if isinstance(error, ConfigurationError) or not isinstance(error, Exception | SystemExit):
                raise
            message = f"vLLM cannot load {self._settings.model}: {vllm_errors.reason(error)}"
            raise ConfigurationError(message) from error

    async def _load(self, words: list[str]) -> None:
        parser = vllm_api.add_serve_arguments(vllm_api.FlexibleArgumentParser())
        given = parser.parse_args(words)
        # Explicitly those of a server: those for embedders start with 128 sequences and 2,048 tokens a step.
        context = vllm_api.UsageContext.OPENAI_API_SERVER
        config = vllm_api.AsyncEngineArgs.from_cli_args(given).create_engine_config(usage_context=context)
        self.llm = _FrontEnd.from_vllm_config(
            config, usage_context=context, stat_loggers=[self.steps.logger], disable_log_stats=True
        )
        self.llm.long_answers = self._settings.long_answers
        self._rules = self._allow(config.model_config)
        self._limit = config.scheduler_config.max_num_seqs * config.parallel_config.data_parallel_size
        await self._guard(config.model_config)
        state = SimpleNamespace()
        await vllm_api.init_app_state(self.llm, state, given, await self.llm.get_supported_tasks())
        self._serving = _serving(state)

    async def _warm_up(self) -> None:
        """Answer one request with a schema for each replica; vLLM gives each the next.

        For the first one an engine core makes its tables of the vocabulary, and the kernel that masks tokens is
        compiled: with 262,144 tokens a second and a half, in which everybody would wait. A model that cannot do it is
        served all the same.

        Raises:
            EngineFatal: the engine died of it.
        """
        began, body = time.monotonic(), {"model": self.models()[0], **_FIRST}
        try:
            async with asyncio.timeout(FIRST_SECONDS):
                await asyncio.gather(*(self.run(COMPLETIONS, body) for _ in range(self._settings.replicas)))
        except EngineFatal:
            raise
        except Exception as error:  # noqa: BLE001  whatever it is, rows without a schema may do well
            log.warning("vllm_first_schema_failed", error=f"{type(error).__name__}: {error}")
        else:
            log.info("vllm_first_schema", seconds=round(time.monotonic() - began, 2))

    async def _guard(self, model: Any) -> None:
        """Start the sandbox, with the engine's tokenizer; vLLM has fetched it by now if it was not on disk."""
        self._sandbox = Sandbox(
            Path(model.tokenizer),
            vocabulary=model.get_vocab_size(),
            cpu_seconds=self._settings.compile_seconds,
            # They stand back behind the engine, which on a CPU takes all cores.
            wall_seconds=5 * self._settings.compile_seconds,
            # Each takes a core for seconds, and up to a gigabyte. Four at most: a container's quota is not seen here.
            parallel=min(4, max(2, len(os.sched_getaffinity(0)) // 4)),
        )
        if self._settings.task == "generate":
            await self._sandbox.start()

    def _allow(self, model: Any) -> vllm_parameters.Rules:
        settings, tokenizer = self._settings, self.llm.get_tokenizer()
        return vllm_parameters.Rules(
            regex=settings.allow_grammars,
            grammar=settings.allow_grammars,
            tools=settings.tool_parser is not None,
            images=settings.images_per_request,
            vocabulary=model.get_vocab_size(),
            placeholders=vllm_parameters.placeholders(model.hf_config.to_dict(), tokenizer.convert_ids_to_tokens),
        )

    def models(self) -> Sequence[str]:
        return [self._settings.model_name or self._settings.model, *self._settings.adapters]

    def endpoints(self) -> Sequence[str]:
        return list(self._serving)

    def capacity(self) -> int:
        return int(self._limit)

    def takes_images(self) -> bool:
        return self._settings.images_per_request > 0

    async def run(self, endpoint: str, body: Body, *, tenant: str = "") -> Body:
        asked = vllm_parameters.check(_ASKED[endpoint], body, self._rules)
        await self._compile(asked, tenant)
        request = self._request(endpoint, vllm_parameters.request(asked), tenant)
        _asked.set((getattr(asked, "limit", None), getattr(asked, "min_tokens", None) or 0))
        with self._progress:
            answer = await self._serve(endpoint, request)
        return _body(answer)

    async def _compile(self, asked: vllm_parameters.Asked, tenant: str) -> None:
        """Make sure that the engine can compile what the answer must match."""
        if isinstance(asked, vllm_parameters.VllmChat | vllm_parameters.VllmCompletion):
            assert self._sandbox, "made when the model is loaded"
            for each in vllm_parameters.constraints(asked):
                await self._sandbox.check(each.kind, each.text, param=each.param, tenant=tenant)

    def _request(self, endpoint: str, payload: Body, tenant: str) -> Any:
        """Return vLLM's request. The bounds of the answer are in `_asked`, since releases treat them differently."""
        if endpoint == EMBEDDINGS:
            return vllm_api.EmbeddingCompletionRequest(**payload)
        for name in ("max_tokens", "max_completion_tokens", "min_tokens"):
            payload.pop(name, None)
        salt = hmac.digest(self._secret, tenant.encode(), hashlib.sha256).hex()
        kind = vllm_api.ChatCompletionRequest if endpoint == CHAT else vllm_api.CompletionRequest
        return kind(**payload, cache_salt=salt)

    async def _serve(self, endpoint: str, request: Any) -> Any:
        try:
            answer = await self._serving[endpoint](request)
        except NoRoom as error:
            raise vllm_errors.too_long(error.args[0], endpoint) from None
        except vllm_api.EngineDeadError as error:
            raise EngineFatal from error
        except vllm_api.VLLMValidationError as error:
            raise vllm_errors.invalid(error, endpoint, self.llm.model_config.max_model_len) from None
        except Exception as error:  # noqa: BLE001  vLLM's server makes answers of them too
            answer = vllm_api.create_error_response(error)
            answer.error.param = answer.error.param or vllm_errors.blamed_template(error, endpoint)
        if not isinstance(answer, vllm_api.ErrorResponse):
            return answer
        if (task := asyncio.current_task()) and task.cancelling():
            # vLLM takes a cancelled request for a client that hung up, and answers it.
            raise asyncio.CancelledError
        if self.llm.errored:
            raise EngineFatal
        raise vllm_errors.rejection(answer, endpoint)

    def healthy(self) -> bool:
        # Rows that run learn by themselves that the core is dead, and give their shards back.
        died_idle = self.llm.errored and not self._progress.busy
        return self._progress.healthy() and not died_idle

    def load(self) -> Load:
        steps = self.steps
        if not self._progress.busy:
            # The last step it told of may have had requests that were aborted since.
            return Load(preempted=steps.preempted, kv_use=0.0)
        return Load(steps.running, steps.waiting, steps.kv_use, steps.preempted)

    async def stop(self) -> None:
        if self._sandbox:
            await self._sandbox.stop()
        if self.llm:
            self.llm.shutdown()


class Steps:
    """What vLLM tells of each step of its engine. It is also the sign that the engine makes progress."""

    def __init__(self, on_step: Callable[[], None]) -> None:
        self._on_step = on_step
        # What each replica had in its last step.
        self._replicas: dict[int, tuple[int, int, float]] = {}
        self.running = self.waiting = self.preempted = 0
        """Requests in the last step, of all replicas; requests that lost their place in the KV cache, in all."""
        self.kv_use = 0.0
        """Part of the KV cache in use, of the replica that has least room."""

    def logger(self, _config: Any, replica: int = 0) -> Any:
        """Make what vLLM reports to, for each replica."""
        return _StepLogger(self, replica)

    def record(self, scheduler: Any, iteration: Any, replica: int = 0) -> None:
        self._on_step()
        if scheduler is not None:
            now = (scheduler.num_running_reqs, scheduler.num_waiting_reqs, scheduler.kv_cache_usage)
            self._replicas[replica] = now
            running, waiting, kv_use = zip(*self._replicas.values(), strict=True)
            self.running, self.waiting, self.kv_use = sum(running), sum(waiting), max(kv_use)
        if iteration is not None:
            self.preempted += iteration.num_preempted_reqs


class _StepLogger(vllm_api.StatLoggerBase):  # type: ignore[misc]  # vLLM is not there when types are checked
    def __init__(self, steps: Steps, replica: int) -> None:
        self._steps, self._replica = steps, replica

    def record(self, scheduler_stats: Any, iteration_stats: Any, *_: Any, **__: Any) -> None:
        self._steps.record(scheduler_stats, iteration_stats, self._replica)

    def log_engine_initialized(self) -> None:
        pass


class _FrontEnd(vllm_api.AsyncLLM):  # type: ignore[misc]  # vLLM is not there when types are checked
    """vLLM's front end, with one rule for answers that do not fit: some releases refuse them, some clamp."""

    long_answers = "refuse"

    def __del__(self) -> None:
        """`VllmEngine.stop` has ended it. At the end of the interpreter vLLM's own finds its functions gone."""

    async def generate(self, prompt: Any, sampling_params: Any, *rest: Any, **more: Any) -> AsyncIterator[Any]:
        tokens, context = len(prompt["prompt_token_ids"]), self.model_config.max_model_len
        (most, fewest) = _asked.get()
        bound = _bound(tokens, most, context, refuse=self.long_answers == "refuse")
        if most is None:
            # What vLLM or the checkpoint takes for the default.
            bound = min(sampling_params.max_tokens or bound, bound)
        sampling_params.max_tokens, sampling_params.min_tokens = bound, min(fewest, bound)
        async for output in super().generate(prompt, sampling_params, *rest, **more):
            yield output


class NoRoom(Exception):
    """Prompt and answer do not fit into the context. On its way through vLLM's serving layer."""


def _bound(prompt: int, asked: int | None, context: int, *, refuse: bool) -> int:
    """Return the most tokens of an answer.

    Raises:
        NoRoom: prompt and answer do not fit.
    """
    room = context - prompt
    if room < 1 or (asked is not None and asked > room and refuse):
        wanted = f"{prompt} in the prompt" + (f" and {asked} for the answer" if asked else "")
        message = f"This model's context holds {context} tokens. The request has {wanted}."
        raise NoRoom(message)
    return min(room, asked or room)


def _shown(name: str, value: Any) -> Any:
    return "..." if "token" in name.split("-") or "key" in name.split("-") else value


def _check_there(model: str) -> None:
    """VLLM takes a path with nothing behind it for an odd name on the Hub."""
    if model.startswith(("/", "./", "../")) and not Path(model).exists():
        message = f"There is no checkpoint at {model}."
        raise ConfigurationError(message)


def _serving(state: Any) -> dict[str, Serve]:
    """Return what serves each endpoint; a model is loaded for some of them. Scores are made of embeddings."""
    chat, completion = (getattr(state, f"openai_serving_{name}", None) for name in ("chat", "completion"))
    made: dict[str, Any] = {
        CHAT: chat and chat.create_chat_completion,
        COMPLETIONS: completion and completion.create_completion,
        EMBEDDINGS: getattr(state, "serving_embedding", None),
    }
    return {endpoint: serve for endpoint, serve in made.items() if serve}


_ASKED: dict[str, Any] = {
    CHAT: vllm_parameters.VllmChat,
    COMPLETIONS: vllm_parameters.VllmCompletion,
    EMBEDDINGS: vllm_parameters.VllmEmbedding,
}


def _body(answer: Any) -> Body:
    """Return what `vllm serve` would send. Pooling answers are put together as responses already."""
    body: Body = answer.model_dump() if hasattr(answer, "model_dump") else msgspec.json.decode(answer.body)
    return body
