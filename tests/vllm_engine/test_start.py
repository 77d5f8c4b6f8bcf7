"""A worker that cannot start says why in one line; and the processes of vLLM log nothing that clients sent."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from subjects import CHECKPOINTS, Subject, below, is_core, started
from vllm.logging_utils.dump_input import dump_engine_exception

from jobs.errors import ConfigurationError, EngineFatal, RequestRejected
from workers.engines import vllm_processes
from workers.engines.vllm import VllmEngine

CANARY = "kakapo"


def refusal(**settings: Any) -> str:
    """Return why the engine does not start, in one line; nothing of it is left."""
    with pytest.raises(ConfigurationError) as caught:
        Subject(**settings)
    assert not [each for each in below(psutil.Process()) if is_core(each)]
    assert len(caught.value.message.splitlines()) == 1
    return caught.value.message


def test_a_wrong_path_is_named(tmp_path: Path) -> None:
    assert refusal(model=str(tmp_path / "nowhere")) == f"There is no checkpoint at {tmp_path / 'nowhere'}."
    assert str(tmp_path) in refusal(model=str(tmp_path))


def test_an_argument_that_vllm_does_not_have_is_its_own_word(capsys: pytest.CaptureFixture[str]) -> None:
    message = refusal(model=str(CHECKPOINTS / "smollm2"), arguments={"frobnicate": 1})
    assert "does not take these arguments" in message
    assert "--frobnicate" in capsys.readouterr().err


def test_a_setting_that_the_model_does_not_allow_is_told() -> None:
    assert "1000000" in refusal(model=str(CHECKPOINTS / "smollm2"), context_tokens=1_000_000)


def test_the_tables_for_schemas_are_made_before_the_worker_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else everybody waits for them when the first row with a schema comes."""
    asked, serve = [], VllmEngine._serve

    async def noted(engine: Any, endpoint: str, request: Any) -> Any:
        answer = await serve(engine, endpoint, request)
        asked.append((request.response_format.type, answer.choices[0].finish_reason))
        return answer

    async def failing(engine: Any, _endpoint: str, _request: Any) -> Any:
        raise engine.failure

    monkeypatch.setattr(VllmEngine, "_serve", noted)
    with started(model=str(CHECKPOINTS / "smollm2")) as subject:
        ((kind, _),) = asked
        assert kind == "json_schema"
        monkeypatch.setattr(VllmEngine, "_serve", failing)
        subject.engine.failure = RequestRejected("It cannot.")
        subject.do(subject.engine._warm_up())
        subject.engine.failure = EngineFatal()
        with pytest.raises(EngineFatal):
            subject.do(subject.engine._warm_up())


class Request(SimpleNamespace):
    """As the engine core has it, with the parameters that the client sent."""

    def anon_repr(self) -> str:
        return f"sampling_params={self.stop}"


def test_an_engine_core_that_dies_of_a_request_does_not_write_it_down() -> None:
    written: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: written.append(record.getMessage())  # type: ignore[method-assign]
    dump, base = logging.getLogger("vllm.logging_utils.dump_input"), logging.getLogger("vllm")
    base.addHandler(handler)
    try:
        dump.setLevel(logging.NOTSET)
        dump_engine_exception(None, Request(stop=CANARY), None)
        assert CANARY in "".join(written), "vLLM writes it by itself"
        written.clear()
        vllm_processes.plugin()
        dump_engine_exception(None, Request(stop=CANARY), None)
        assert not written
    finally:
        base.removeHandler(handler)
