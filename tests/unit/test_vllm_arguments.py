import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from jobs.errors import ConfigurationError
from jobs.settings import Vllm
from workers.engines.vllm_arguments import NEVER, command, serve_arguments, words


def test_what_is_not_set_is_left_to_the_engine() -> None:
    arguments = serve_arguments(Vllm(model="some/model"))
    assert not {"max-model-len", "quantization", "enforce-eager", "enable-lora", "chat-template"} & arguments.keys()
    assert arguments["served-model-name"] == ["some/model"]


def test_a_model_must_be_named() -> None:
    with pytest.raises(ConfigurationError, match="PROMPTMILL_WORKER__VLLM__MODEL"):
        serve_arguments(Vllm())


def test_a_checkpoint_is_the_commit_that_was_named_and_runs_no_code() -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    arguments = serve_arguments(Vllm(model="some/model", revision=commit))
    assert (arguments["revision"], arguments["load-format"]) == (commit, "safetensors")
    assert "trust-remote-code" not in arguments
    assert "revision" not in serve_arguments(Vllm(model="some/model"))


@pytest.mark.parametrize("revision", ["main", "v1.0", "0123456", ""])
def test_a_branch_is_no_revision(revision: str) -> None:
    with pytest.raises(ValidationError):
        Vllm(model="some/model", revision=revision)


def test_further_arguments_win_and_none_takes_one_away() -> None:
    vllm = Vllm(model="some/model", arguments={"max_num_seqs": 7, "--kv-cache-dtype": None, "seed": 1})
    arguments = serve_arguments(vllm)
    assert (arguments["max-num-seqs"], arguments["seed"]) == (7, 1)
    assert "kv-cache-dtype" not in arguments


@pytest.mark.parametrize(
    ("name", "found"),
    [
        *((name, name) for name in NEVER),
        ("trust_remote_code", "trust-remote-code"),
        ("--trust-remote-code", "trust-remote-code"),
        # What vLLM's parser makes of these is the same.
        ("trust-rem", "trust-remote-code"),
        ("kv_transfer_config.kv_connector", "kv-transfer-config"),
        ('kv-transfer-config={"kv_connector": "x"}', "kv-transfer-config"),
        ("profiler-config.options+", "profiler-config"),
    ],
)
def test_what_the_advisories_rest_on_cannot_be_undone(name: str, found: str) -> None:
    with pytest.raises(ConfigurationError, match=f"'{found}'") as caught:
        serve_arguments(Vllm(model="m", arguments={name: True}))
    assert len(caught.value.message.splitlines()) == 1


def test_what_is_off_anyway_may_be_said() -> None:
    settings = Vllm(model="m", arguments={"trust-remote-code": False, "kv-transfer-config": None, "model-impl": "vllm"})
    assert "--no-trust-remote-code" in words(serve_arguments(settings))


@pytest.mark.parametrize(
    ("flags", "environment", "says"),
    [
        (["-O"], {}, "python -O"),
        ([], {"PYTHONOPTIMIZE": "1"}, "python -O"),
        ([], {"VLLM_ALLOW_INSECURE_SERIALIZATION": "1"}, "VLLM_ALLOW_INSECURE_SERIALIZATION"),
    ],
)
def test_vllm_is_not_even_imported_where_it_would_check_nothing(
    flags: list[str], environment: dict[str, str], says: str
) -> None:
    program = "from workers.engines import vllm_processes; vllm_processes.prepare()"
    ran = subprocess.run(
        [sys.executable, *flags, "-c", program],
        env={**os.environ, "PYTHONPATH": ":".join(sys.path), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert says in ran.stderr.splitlines()[-1]
    assert "ConfigurationError" in ran.stderr


def test_adapters_are_models_with_room_for_the_largest(tmp_path: Path) -> None:
    adapters = {}
    for name, rank in (("a", 8), ("b", 40)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text(f'{{"r": {rank}}}')
        adapters[name] = tmp_path / name
    arguments = serve_arguments(Vllm(model="m", adapters=adapters))
    assert (arguments["enable-lora"], arguments["max-loras"], arguments["max-lora-rank"]) == (True, 2, 64)


def test_a_folder_without_an_adapter_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=str(tmp_path)):
        serve_arguments(Vllm(model="m", adapters={"a": tmp_path}))


def test_ray_runs_the_replicas_too() -> None:
    assert serve_arguments(Vllm(model="m", executor="ray", replicas=2))["data-parallel-backend"] == "ray"
    assert "data-parallel-backend" not in serve_arguments(Vllm(model="m", executor="ray"))


def test_words_are_those_of_a_command_line() -> None:
    arguments = {"model": "m", "a": True, "b": False, "c": {"d": 1}, "e": [1, "x y"], "f": "-1"}
    named = ["--a", "--no-b", '--c={"d": 1}', "--e", "1", "x y", "--f=-1"]
    assert words(arguments) == ["--model=m", *named]  # type: ignore[arg-type]
    assert command(arguments) == ["vllm", "serve", "m", *named]  # type: ignore[arg-type]


def test_a_value_of_a_list_is_no_argument() -> None:
    settings = Vllm(model="m", arguments={"served-model-name": ["m", "--trust-remote-code"]})
    with pytest.raises(ConfigurationError, match="--trust-remote-code, a value of served-model-name"):
        words(serve_arguments(settings))
