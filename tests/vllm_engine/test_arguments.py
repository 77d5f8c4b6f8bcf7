"""What we say to vLLM is what it understands: its own parser reads the words of each profile."""

import argparse
from pathlib import Path
from typing import Any

import pytest

from jobs import profiles, settings
from jobs.settings import Vllm
from workers.engines.vllm_arguments import command, serve_arguments

serve = pytest.importorskip("vllm.entrypoints.cli.serve")
argparse_utils = pytest.importorskip("vllm.utils.argparse_utils")
arg_utils = pytest.importorskip("vllm.engine.arg_utils")


@pytest.fixture(autouse=True)
def _names_may_be_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Off the net vLLM looks for the checkpoint already when it reads the arguments."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@pytest.fixture(scope="module")
def parser() -> Any:
    made = argparse_utils.FlexibleArgumentParser()
    serve.ServeSubcommand().subparser_init(made.add_subparsers())
    return made


def parsed(parser: Any, vllm: Vllm) -> tuple[argparse.Namespace, Any]:
    """Return what `vllm serve` reads, and what its engine gets of it."""
    namespace = parser.parse_args(command(serve_arguments(vllm))[1:])
    namespace.model = namespace.model_tag
    return namespace, arg_utils.AsyncEngineArgs.from_cli_args(namespace)


@pytest.mark.parametrize("name", [name for name in profiles.names() if "gguf" not in name])
def test_vllm_reads_every_profile(parser: Any, name: str) -> None:
    vllm = settings.load(name).worker.vllm
    namespace, engine = parsed(parser, vllm)
    assert namespace.served_model_name == [vllm.model_name]
    assert (engine.model, engine.max_model_len) == (vllm.model, vllm.context_tokens)
    assert (engine.max_num_seqs, engine.max_num_batched_tokens) == (vllm.max_sequences, vllm.step_tokens)
    assert engine.gpu_memory_utilization == vllm.gpu_memory_share
    assert engine.quantization == (None if vllm.quantization == "checkpoint" else vllm.quantization)
    assert engine.tensor_parallel_size == vllm.tensor_parallel
    assert engine.limit_mm_per_prompt["image"] == vllm.images_per_request


def test_vllm_reads_every_setting(parser: Any, tmp_path: Path) -> None:
    (tmp_path / "a=b,c").mkdir()
    for folder in (tmp_path, tmp_path / "a=b,c"):
        (folder / "adapter_config.json").write_text('{"r": 16}')
    vllm = Vllm(
        model="some/model",
        task="embed",
        adapters={"french": tmp_path, "odd": tmp_path / "a=b,c"},
        context_tokens=1000,
        kv_cache="fp8",
        tensor_parallel=2,
        pipeline_parallel=3,
        replicas=4,
        executor="ray",
        eager=True,
        images_per_request=5,
        tool_parser="hermes",
        reasoning_parser="qwen3",
        chat_template=tmp_path / "chat.jinja",
        arguments={"enable_prefix_caching": False, "cudagraph-capture-sizes": [1, 2], "watermark": 0.02, "seed": None},
    )
    namespace, engine = parsed(parser, vllm)
    assert namespace.served_model_name == ["some/model"]
    assert [(module.name, module.path) for module in namespace.lora_modules] == [
        ("french", str(tmp_path)),
        ("odd", str(tmp_path / "a=b,c")),
    ]
    assert (engine.runner, engine.enable_lora, engine.max_lora_rank) == ("pooling", True, 16)
    assert (engine.kv_cache_dtype, engine.enforce_eager, engine.watermark) == ("fp8", True, 0.02)
    assert (engine.tensor_parallel_size, engine.pipeline_parallel_size, engine.data_parallel_size) == (2, 3, 4)
    assert (engine.distributed_executor_backend, engine.data_parallel_backend) == ("ray", "ray")
    assert (engine.enable_prefix_caching, engine.cudagraph_capture_sizes) == (False, [1, 2])
    assert (namespace.tool_call_parser, namespace.enable_auto_tool_choice) == ("hermes", True)
    assert engine.limit_mm_per_prompt["image"] == 5


def test_vllm_refuses_an_argument_that_it_does_not_have(parser: Any) -> None:
    with pytest.raises(SystemExit):
        parsed(parser, Vllm(model="some/model", arguments={"max-sequences": 1}))
