"""A vLLM engine on a loop of its own, for the tests of this folder."""

import asyncio
import json
import os
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import psutil

from jobs.settings import Vllm, Worker
from workers import engines
from workers.engines.base import Body

CHAT = "/v1/chat/completions"
CHECKPOINTS = Path(os.environ.get("PROMPTMILL_TEST_CHECKPOINTS", ""))
ON_CPU = Vllm(dtype="float32", eager=True, context_tokens=512, max_sequences=4, gpu_memory_share=0.2)


class Subject:
    """An engine that has been started."""

    def __init__(self, *, stall_seconds: float = 60, **settings: Any) -> None:
        self.loop = asyncio.new_event_loop()
        vllm = ON_CPU.model_copy(update=settings)
        try:
            self.engine: Any = self.do(self._make(Worker(engine="vllm", vllm=vllm, stall_seconds=stall_seconds)))
        except BaseException:
            self.loop.close()
            raise

    @staticmethod
    async def _make(settings: Worker) -> Any:
        engine = engines.make(settings)
        await engine.start()
        return engine

    def do(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(coroutine, 240))

    def run(self, endpoint: str, body: Body, tenant: str = "project") -> Body:
        answer: Body = self.do(self.engine.run(endpoint, body, tenant=tenant))
        return answer

    def chat(self, text: Any = "Say hello.", *, tenant: str = "project", **parameters: Any) -> Body:
        body = {"messages": [{"role": "user", "content": text}], "max_tokens": 8, "temperature": 0, **parameters}
        return self.run(CHAT, {"model": self.engine.models()[0], **body}, tenant)


class Served:
    """The HTTP application of `vllm serve`, on the very engine of a subject."""

    def __init__(self, subject: Subject) -> None:
        # Not before an engine is there: it prepares what vLLM reads when it is imported.
        from workers.engines import vllm_api, vllm_arguments

        places = ("vllm.entrypoints.launchers.app:build_app", "vllm.entrypoints.openai.api_server:build_app")
        build_app, engine = vllm_api.first(*places), subject.engine
        words = vllm_arguments.words(vllm_arguments.serve_arguments(engine._settings))
        given = vllm_api.add_serve_arguments(vllm_api.FlexibleArgumentParser()).parse_args(words)
        # As `vllm serve` does first: it is what tells the serving layer of the reasoning parser.
        vllm_api.AsyncEngineArgs.from_cli_args(given).create_engine_config()

        async def build() -> Any:
            tasks = await engine.llm.get_supported_tasks()
            app = build_app(given, tasks, engine.llm.model_config)
            await vllm_api.init_app_state(engine.llm, app.state, given, tasks)
            return app

        self._subject, self._app = subject, subject.do(build())

    def post(self, endpoint: str, body: Body) -> Body:
        async def post() -> Any:
            transport = httpx2.ASGITransport(self._app)
            async with httpx2.AsyncClient(transport=transport, base_url="http://serve") as client:
                return (await client.post(endpoint, json=body)).raise_for_status().json()

        answer: Body = self._subject.do(post())
        return answer


def comparable(answer: Body) -> Body:
    """Leave out what differs from one call to the next, and what of the usage is not known."""
    plain: Body = json.loads(json.dumps(answer))
    for choice in plain.get("choices", ()):
        for call in choice.get("message", {}).get("tool_calls") or ():
            call.pop("id")
    cached = "prompt_tokens_details"
    usage = {name: value for name, value in plain["usage"].items() if name != cached and value is not None}
    return {**plain, "usage": usage, "id": None, "created": None}


@contextmanager
def started(**settings: Any) -> Iterator[Subject]:
    """Start an engine; after the block nothing is left of it."""
    subject = Subject(**settings)
    try:
        yield subject
    finally:
        family = [each for each in below(psutil.Process()) if "resource_tracker" not in " ".join(each.cmdline())]
        subject.do(subject.engine.stop())
        subject.loop.close()
    _, left = psutil.wait_procs(family, timeout=20)
    assert not left


def below(process: psutil.Process) -> list[psutil.Process]:
    return process.children(recursive=True)


def is_core(process: psutil.Process) -> bool:
    """Tell whether it is vLLM's engine core: it gives itself a name when it has started."""
    with suppress(psutil.NoSuchProcess):
        words = " ".join([process.name(), *process.cmdline()])
        return "EngineCore" in words or "spawn_main" in words
    return False


def core() -> psutil.Process:
    """Return the process of this process' engine core."""
    return next(each for each in below(psutil.Process()) if is_core(each))
