"""A worker that cannot start says why in one line; and the processes of vLLM log nothing that clients sent."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from subjects import CHECKPOINTS, Subject, below, is_core
from vllm.logging_utils.dump_input import dump_engine_exception

from jobs.errors import ConfigurationError
from workers.engines import vllm_processes

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
