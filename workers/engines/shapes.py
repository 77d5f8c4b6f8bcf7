"""What of a model decides its memory: read from the `config.json` of a checkpoint, or known by name for Gemma 3."""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jobs.errors import ConfigurationError

Config = dict[str, Any]

# What the configs of Gemma 3 leave out (transformers, Gemma3TextConfig).
_GEMMA_3: Config = {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "vocab_size": 262_208,
    "sliding_window_pattern": 6,
    "max_position_embeddings": 131_072,
    "tie_word_embeddings": True,
}
_SIGLIP: Config = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "image_size": 896,
    "patch_size": 14,
}


def _gemma(layers: int, hidden: int, intermediate: int, window: int, **more: int) -> Config:
    sizes = {"num_hidden_layers": layers, "hidden_size": hidden, "intermediate_size": intermediate}
    return {"model_type": "gemma3_text", "sliding_window": window, **sizes, **more}


def _with_images(text: Config) -> Config:
    return {"model_type": "gemma3", "mm_tokens_per_image": 256, "text_config": text, "vision_config": _SIGLIP}


# The published configs of the instruction-tuned checkpoints.
KNOWN = {
    "27b": _with_images(
        _gemma(62, 5376, 21_504, 1024, num_attention_heads=32, num_key_value_heads=16, head_dim=128),
    ),
    "12b": _with_images(_gemma(48, 3840, 15_360, 1024, num_attention_heads=16, num_key_value_heads=8)),
    "4b": _with_images(_gemma(34, 2560, 10_240, 1024)),
    "1b": _gemma(26, 1152, 6912, 512, num_attention_heads=4, num_key_value_heads=1, vocab_size=262_144),
    "270m": _gemma(18, 640, 2048, 512, num_attention_heads=4, num_key_value_heads=1, vocab_size=262_144),
}
_NAME = re.compile(r"gemma-?3-(\d+(?:b|m))(?![a-z0-9])", re.IGNORECASE)


@dataclass(frozen=True)
class Vision:
    """An image encoder."""

    parameters: int
    patches: int
    """Of one image."""
    tokens: int
    """That one image takes of the context."""
    hidden: int
    intermediate: int


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder."""

    source: str
    """Where they come from, for people."""
    windows: tuple[int | None, ...]
    """For each layer the tokens that its attention looks back; None for all."""
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    """The output layer is the embedding."""
    experts: int
    context_tokens: int
    weight_bits: float | None
    """Bits of a weight of the layers as the checkpoint says, scales included; None: not quantised."""
    file_bytes: int | None
    """Size of the checkpoint's weights; None where the files are not at hand."""
    vision: Vision | None

    @property
    def layer_parameters(self) -> int:
        """Weights of all layers; norms are nothing beside them."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return len(self.windows) * (attention + 3 * self.hidden * self.intermediate * self.experts)

    @property
    def embedding_parameters(self) -> int:
        return self.vocabulary * self.hidden * (1 if self.tied else 2)


def of_model(model: str) -> Shape:
    """Return the shape of a checkpoint.

    Args:
        model: a directory with a `config.json`, or a name that says which Gemma 3 it is.

    Raises:
        ConfigurationError: neither; or a model of a kind that keeps something else than keys and values.
    """
    folder = Path(model)
    if model and (folder / "config.json").is_file():
        config = json.loads((folder / "config.json").read_text())
        return from_config(config, source=str(folder / "config.json"), file_bytes=_file_bytes(folder))
    if match := _NAME.search(model):
        size = match[1].lower()
        if size in KNOWN:
            return from_config(KNOWN[size], source=f"built in: Gemma 3 {size.upper()}")
    message = f"Nothing is known of the model {model!r}: it is no directory with a config.json, and no Gemma 3."
    raise ConfigurationError(message)


def of_gguf(path: Path) -> Shape:
    """Return the shape of a GGUF file of a Gemma 3, which its name must say; its size, if it is there.

    Raises:
        ConfigurationError: the name says nothing.
    """
    return replace(of_model(path.name), file_bytes=path.stat().st_size if path.is_file() else None)


def from_config(config: Config, *, source: str, file_bytes: int | None = None) -> Shape:
    """Return the shape that a Hugging Face config describes; what it nests for images is looked through."""
    text = {**config, **config.get("text_config", {})}
    if str(text.get("model_type", "")).startswith("gemma3"):
        text = {**_GEMMA_3, **text}
    if "kv_lora_rank" in text:
        message = f"{source}: models with compressed keys and values (MLA) are not known here."
        raise ConfigurationError(message)
    try:
        return Shape(
            source=source,
            windows=_windows(text),
            hidden=text["hidden_size"],
            intermediate=text.get("moe_intermediate_size") or text["intermediate_size"],
            heads=text["num_attention_heads"],
            kv_heads=text.get("num_key_value_heads") or text["num_attention_heads"],
            head_dim=text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"],
            vocabulary=text["vocab_size"],
            tied=bool(text.get("tie_word_embeddings", False)),
            experts=text.get("num_local_experts") or text.get("num_experts") or 1,
            context_tokens=text["max_position_embeddings"],
            weight_bits=_weight_bits(text.get("quantization_config")),
            file_bytes=file_bytes,
            vision=_vision(config),
        )
    except KeyError as error:
        message = f"{source}: {error.args[0]} is missing."
        raise ConfigurationError(message) from error


def _windows(text: Config) -> tuple[int | None, ...]:
    layers, window = text["num_hidden_layers"], text.get("sliding_window")
    kinds = text.get("layer_types") or _kinds(text, layers)
    if unknown := set(kinds) - {"full_attention", "sliding_attention"}:
        message = f"Layers of the kind {', '.join(sorted(unknown))} are not known here."
        raise ConfigurationError(message)
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _kinds(text: Config, layers: int) -> list[str]:
    """Return the kinds of the layers of a config that does not list them."""
    if not text.get("sliding_window") or not text.get("use_sliding_window", True):
        return ["full_attention"] * layers
    # One layer in so many looks back all the way; without a pattern none does.
    pattern = text.get("sliding_window_pattern") or layers + 1
    return ["sliding_attention" if number % pattern else "full_attention" for number in range(1, layers + 1)]


def _weight_bits(quantization: Config | None) -> float | None:
    if not quantization:
        return None
    bits, group = _bits_and_group(quantization)
    # A scale of 16 bits and a zero point for each group; -1 stands for one group a row.
    return bits + ((16 + bits) / group if group > 0 else 0)


def _bits_and_group(quantization: Config) -> tuple[int, int]:
    groups = quantization.get("config_groups")
    if groups:
        weights = next(iter(groups.values()))["weights"]
        return weights["num_bits"], weights.get("group_size") or -1
    if "bits" in quantization:
        return quantization["bits"], quantization.get("group_size") or -1
    return (4 if quantization.get("load_in_4bit") else 8), -1


def _vision(config: Config) -> Vision | None:
    sizes = config.get("vision_config") or {}
    if not {"hidden_size", "intermediate_size", "num_hidden_layers", "image_size", "patch_size"} <= sizes.keys():
        return None
    hidden, intermediate = sizes["hidden_size"], sizes["intermediate_size"]
    patches = (sizes["image_size"] // sizes["patch_size"]) ** 2
    return Vision(
        parameters=sizes["num_hidden_layers"] * (4 * hidden**2 + 2 * hidden * intermediate),
        patches=patches,
        tokens=config.get("mm_tokens_per_image", patches),
        hidden=hidden,
        intermediate=intermediate,
    )


def _file_bytes(folder: Path) -> int | None:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors")) or None
