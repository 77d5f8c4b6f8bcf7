"""Engines whose library is not installed."""

from importlib.util import find_spec

import pytest

from jobs.errors import ConfigurationError
from jobs.settings import Vllm, Worker
from workers import engines


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_a_worker_without_vllm_says_so() -> None:
    with pytest.raises(ConfigurationError, match="not installed"):
        engines.make(Worker(engine="vllm", vllm=Vllm(model="m")))
