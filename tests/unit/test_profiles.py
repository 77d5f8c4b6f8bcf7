import itertools
import tomllib
from pathlib import Path

import pytest

from jobs import profiles, settings
from jobs.errors import ConfigurationError


@pytest.fixture(autouse=True)
def _fresh() -> None:
    settings.load.cache_clear()


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "own.toml"
    path.write_text('[worker]\nengine = "vllm"\n[worker.vllm]\nmax_sequences = 7\nstep_tokens = 1000\n')
    return path


@pytest.mark.parametrize("name", profiles.names())
def test_a_shipped_profile_is_valid_and_says_which_gpu_it_is_for(name: str) -> None:
    worker = settings.load(name).worker
    assert worker.gpu_memory_gib
    document = tomllib.loads(profiles.find(name).read_text())
    assert document.keys() == {"worker"}, "what the API and the reconciler must know too is no matter of a profile"


@pytest.mark.parametrize("name", profiles.names())
def test_each_line_of_a_shipped_profile_has_its_reason(name: str) -> None:
    lines = profiles.find(name).read_text().splitlines()
    assert lines[0].startswith("# ")
    for above, line in itertools.pairwise(lines):
        if line and not line.startswith(("#", "[")):
            assert above.startswith("# "), f"{name}: no reason for: {line}"


def test_all_engines_and_gpus_are_there() -> None:
    gpus = {"h100-bf16", "h100-fp8", "h200-bf16", "h200-fp8", "2xh100-tp", "a100-80-bf16", "rtx-4090-gguf"}
    assert {name.removeprefix("gemma-3-27b-it/") for name in profiles.names()} == gpus


def test_profiles_of_one_model_serve_it_by_one_name() -> None:
    workers = [settings.load(name).worker for name in profiles.names()]
    assert {(w.vllm if w.engine == "vllm" else w.llamacpp).model_name for w in workers} == {"gemma-3-27b-it"}


def test_a_variable_wins_over_the_profile(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPTMILL_WORKER__VLLM__MAX_SEQUENCES", "9")
    vllm = settings.load(str(own)).worker.vllm
    assert (vllm.max_sequences, vllm.step_tokens) == (9, 1000)


def test_a_variable_names_a_profile_and_the_option_wins(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPTMILL_PROFILE", str(own))
    assert settings.load().worker.vllm.max_sequences == 7
    assert settings.load("gemma-3-27b-it/h100-fp8").worker.vllm.max_sequences == 512


@pytest.mark.parametrize("name", ["gemma-3-27b-it/h100", "../pyproject", "no/such.toml"])
def test_a_profile_that_is_not_there_gets_the_list_of_those_that_are(name: str) -> None:
    with pytest.raises(ConfigurationError, match="gemma-3-27b-it/h100-fp8") as caught:
        settings.load(name)
    assert name in caught.value.message


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[worker.vllm]\nmax_sequence = 7\n", "worker.vllm.max_sequence: Extra inputs"),
        ("[worker]\nengin = 1\n", "worker.engin: Extra inputs"),
        ("[wrker]\nengine = 1\n", "wrker: Extra inputs"),
        ("[worker.vllm]\nmax_sequences = 0\n", "worker.vllm.max_sequences: Input should be greater"),
        ("[worker\n", "is not valid TOML"),
    ],
)
def test_a_mistake_is_named_with_its_file_and_key(own: Path, text: str, problem: str) -> None:
    own.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        settings.load(str(own))
    assert problem in caught.value.message
    assert str(own) in caught.value.message


def test_a_mistake_in_a_variable_is_not_put_on_the_profile(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPTMILL_WORKER__VLLM__MAX_SEQUENCES", "many")
    with pytest.raises(ConfigurationError, match=r"^PROMPTMILL_WORKER__VLLM__MAX_SEQUENCES"):
        settings.load(str(own))
