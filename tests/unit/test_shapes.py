import json
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import ConfigurationError
from workers.engines import shapes

QWEN: dict[str, Any] = {
    "model_type": "qwen2",
    "num_hidden_layers": 4,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}


def shape(**more: Any) -> shapes.Shape:
    return shapes.from_config({**QWEN, **more}, source="test")


@pytest.mark.parametrize(
    ("name", "layers", "far", "billions"),
    # Parameters of the language models, as their cards say.
    [
        ("google/gemma-3-27b-it", 62, 10, 27.0),
        ("gemma3-12b", 48, 8, 11.8),
        ("someone/Gemma-3-4B-it-tuned", 34, 5, 3.9),
        ("gemma-3-1b-it", 26, 4, 1.0),
        ("gemma-3-270m", 18, 3, 0.27),
    ],
)
def test_gemma_is_known_by_name(name: str, layers: int, far: int, billions: float) -> None:
    made = shapes.of_model(name)
    assert (len(made.windows), made.windows.count(None)) == (layers, far)
    assert made.layer_parameters + made.embedding_parameters == pytest.approx(billions * 1e9, rel=0.02)


@pytest.mark.parametrize("name", ["", "gemma-3-28b", "gemma-2-27b", "gemma-3-27billion", "/no/such/folder"])
def test_what_is_not_known_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="Nothing is known"):
        shapes.of_model(name)


def test_a_checkpoint_describes_itself(tmp_path: Path) -> None:
    nested = {"model_type": "some_vl", "text_config": {**QWEN, "head_dim": 32}, "tie_word_embeddings": True}
    (tmp_path / "config.json").write_text(json.dumps(nested))
    (tmp_path / "model-1.safetensors").write_bytes(b"x" * 10)
    (tmp_path / "model-2.safetensors").write_bytes(b"x" * 5)
    made = shapes.of_model(str(tmp_path))
    assert (made.kv_heads, made.head_dim, made.context_tokens, made.file_bytes) == (2, 32, 2048, 15)
    assert made.source == str(tmp_path / "config.json")


def test_attention_without_windows_looks_back_all_the_way() -> None:
    assert shape().windows == (None,) * 4
    assert shape(sliding_window=128, use_sliding_window=False).windows == (None,) * 4


def test_windows_are_as_listed_or_by_pattern_or_everywhere() -> None:
    listed = ["sliding_attention", "full_attention"] * 2
    assert shape(sliding_window=128, layer_types=listed).windows == (128, None, 128, None)
    assert shape(sliding_window=128, sliding_window_pattern=3).windows == (128, 128, None, 128)
    assert shape(sliding_window=128).windows == (128,) * 4


def test_layers_that_keep_something_else_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="linear_attention"):
        shape(layer_types=["linear_attention"] * 4)
    with pytest.raises(ConfigurationError, match="MLA"):
        shape(kv_lora_rank=512)


def test_a_config_with_a_gap_is_named() -> None:
    with pytest.raises(ConfigurationError, match="test: vocab_size is missing"):
        shapes.from_config({name: value for name, value in QWEN.items() if name != "vocab_size"}, source="test")


def test_the_output_layer_counts_when_it_is_its_own() -> None:
    assert shape().embedding_parameters == 2 * shape(tie_word_embeddings=True).embedding_parameters


@pytest.mark.parametrize(
    ("quantization", "bits"),
    [
        (None, None),
        ({"quant_method": "fp8"}, 8),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, 4 + 20 / 128),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, 8),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, 4),
        (
            {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"num_bits": 8}}}},
            8,
        ),
    ],
)
def test_quantised_weights_are_as_the_config_says(quantization: Any, bits: float | None) -> None:
    assert shape(quantization_config=quantization).weight_bits == bits


def test_a_gguf_file_is_known_by_name_and_size(tmp_path: Path) -> None:
    path = tmp_path / "gemma-3-1b-it-q4_0.gguf"
    assert shapes.of_gguf(path).file_bytes is None
    path.write_bytes(b"x" * 7)
    assert (shapes.of_gguf(path).file_bytes, len(shapes.of_gguf(path).windows)) == (7, 26)
