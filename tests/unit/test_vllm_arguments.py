from pathlib import Path

from jobs.settings import Vllm
from workers.engines.vllm_arguments import serve_arguments, serve_words


def test_what_is_not_set_is_left_to_the_engine() -> None:
    arguments = serve_arguments(Vllm(model="some/model"))
    assert not {"max-model-len", "quantization", "enforce-eager", "enable-lora"} & arguments.keys()
    assert arguments["served-model-name"] == "some/model"


def test_further_arguments_win_and_none_takes_one_away() -> None:
    vllm = Vllm(model="some/model", arguments={"max_num_seqs": 7, "--kv-cache-dtype": None, "seed": 1})
    arguments = serve_arguments(vllm)
    assert (arguments["max-num-seqs"], arguments["seed"]) == (7, 1)
    assert "kv-cache-dtype" not in arguments


def test_adapters_are_models_and_may_all_be_in_one_step() -> None:
    arguments = serve_arguments(Vllm(model="m", adapters={"a": Path("/a"), "b": Path("/b")}))
    assert arguments["lora-modules"] == [{"name": "a", "path": "/a"}, {"name": "b", "path": "/b"}]
    assert (arguments["enable-lora"], arguments["max-loras"]) == (True, 2)


def test_ray_runs_the_replicas_too() -> None:
    assert serve_arguments(Vllm(model="m", executor="ray", replicas=2))["data-parallel-backend"] == "ray"
    assert "data-parallel-backend" not in serve_arguments(Vllm(model="m", executor="ray"))


def test_words_are_those_of_a_command_line() -> None:
    words = serve_words({"model": "m", "a": True, "b": False, "c": {"d": 1}, "e": [1, "x y"], "f": "-1"})
    assert words == ["m", "--a", "--no-b", '--c={"d":1}', "--e", "1", "x y", "--f=-1"]
