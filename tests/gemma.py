"""Makes files of Gemma 3's kind, tiny and random: a text model in any quantisation, and an image projector.

What they say is noise. But llama.cpp loads them by the same code as Google's: architecture, tokenizer, chat template,
quantised kernels, the vision encoder and its 4 x 4 pooling.
"""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from numpy.typing import NDArray

WIDTH, LAYERS, FEED_FORWARD, HEADS, HEAD_WIDTH, CONTEXT = 256, 2, 512, 2, 128, 1_024
# An image of 112 x 112 is 8 x 8 patches, and 2 x 2 tokens after pooling.
IMAGE, PATCH, VISION_WIDTH, VISION_LAYERS = 112, 14, 64, 2
IMAGE_TOKENS = 4

# As Google's files have it: no role for the system, whose words go before those of the first user.
TEMPLATE = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '\n\n' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '\n\n' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- set role = "model" if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}
                {{ '<start_of_image>' }}
            {%- elif item['type'] == 'text' -%}
                {{ item['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<start_of_turn>model\n' }}
{%- endif -%}
"""

CONTROL = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>"]

# Most tensors, and those that are kept finer. `Q5_K_M` mixes two kinds, as llama.cpp's own tool does.
QUANTISATIONS = {
    "F16": (Kind.F16, Kind.F16, gguf.LlamaFileType.MOSTLY_F16),
    "Q4_0": (Kind.Q4_0, Kind.Q8_0, gguf.LlamaFileType.MOSTLY_Q4_0),
    "Q8_0": (Kind.Q8_0, Kind.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "Q5_K_M": (Kind.Q5_K, Kind.Q6_K, gguf.LlamaFileType.MOSTLY_Q5_K_M),
}

_random = np.random.default_rng(7)


def write_model(path: Path, quantisation: str = "F16") -> Path:
    """Write a text model of about 2 million weights."""
    usual, finer, file_type = QUANTISATIONS[quantisation]
    writer = gguf.GGUFWriter(path, "gemma3")
    writer.add_file_type(file_type)
    _describe(writer)
    _add_tokenizer(writer)
    tokens = len(_tokens())
    _add(writer, "token_embd.weight", (tokens, WIDTH), finer)
    _add_ones(writer, "output_norm.weight", WIDTH)
    for layer in range(LAYERS):
        _add_layer(writer, f"blk.{layer}", usual, finer)
    return _close(writer, path)


def _describe(writer: gguf.GGUFWriter) -> None:
    writer.add_name("A tiny random Gemma 3")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(1)
    writer.add_key_length(HEAD_WIDTH)
    writer.add_value_length(HEAD_WIDTH)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1_000_000)
    writer.add_sliding_window(512)


def _tokens() -> list[str]:
    return [*CONTROL, *(f"<0x{code:02X}>" for code in range(256)), *(chr(code) for code in range(33, 127)), "▁"]


def _add_tokenizer(writer: gguf.GGUFWriter) -> None:
    tokens = _tokens()
    kinds = gguf.TokenType
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types(
        [kinds.CONTROL] * len(CONTROL) + [kinds.BYTE] * 256 + [kinds.NORMAL] * (len(tokens) - len(CONTROL) - 256)
    )
    for name, add in {
        "<pad>": writer.add_pad_token_id,
        "<eos>": writer.add_eos_token_id,
        "<bos>": writer.add_bos_token_id,
        "<unk>": writer.add_unk_token_id,
        "<end_of_turn>": writer.add_eot_token_id,
    }.items():
        add(CONTROL.index(name))
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(TEMPLATE)


def _add_layer(writer: gguf.GGUFWriter, name: str, usual: Kind, finer: Kind) -> None:
    heads = HEADS * HEAD_WIDTH
    for norm in ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"):
        _add_ones(writer, f"{name}.{norm}.weight", WIDTH)
    for norm in ("attn_q_norm", "attn_k_norm"):
        _add_ones(writer, f"{name}.{norm}.weight", HEAD_WIDTH)
    _add(writer, f"{name}.attn_q.weight", (heads, WIDTH), usual)
    _add(writer, f"{name}.attn_k.weight", (HEAD_WIDTH, WIDTH), usual)
    _add(writer, f"{name}.attn_v.weight", (HEAD_WIDTH, WIDTH), finer)
    _add(writer, f"{name}.attn_output.weight", (WIDTH, heads), usual)
    _add(writer, f"{name}.ffn_gate.weight", (FEED_FORWARD, WIDTH), usual)
    _add(writer, f"{name}.ffn_up.weight", (FEED_FORWARD, WIDTH), usual)
    _add(writer, f"{name}.ffn_down.weight", (WIDTH, FEED_FORWARD), finer)


def write_projector(path: Path, *, width: int = WIDTH) -> Path:
    """Write an image projector for a text model of that width."""
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type(gguf.VisionProjectorType.GEMMA3)
    writer.add_vision_projection_dim(width)
    writer.add_vision_image_size(IMAGE)
    writer.add_vision_patch_size(PATCH)
    writer.add_vision_embedding_length(VISION_WIDTH)
    writer.add_vision_feed_forward_length(2 * VISION_WIDTH)
    writer.add_vision_block_count(VISION_LAYERS)
    writer.add_vision_head_count(2)
    writer.add_vision_attention_layernorm_eps(1e-6)
    writer.add_vision_image_mean([0.5] * 3)
    writer.add_vision_image_std([0.5] * 3)
    writer.add_vision_use_gelu(True)
    _add(writer, "v.patch_embd.weight", (VISION_WIDTH, 3, PATCH, PATCH), Kind.F32)
    _add(writer, "v.patch_embd.bias", (VISION_WIDTH,), Kind.F32)
    _add(writer, "v.position_embd.weight", ((IMAGE // PATCH) ** 2, VISION_WIDTH), Kind.F32)
    _add_norm(writer, "v.post_ln")
    for layer in range(VISION_LAYERS):
        _add_vision_layer(writer, f"v.blk.{layer}")
    _add(writer, "mm.input_projection.weight", (VISION_WIDTH, width), Kind.F32)
    _add_ones(writer, "mm.soft_emb_norm.weight", VISION_WIDTH)
    return _close(writer, path)


def _add_vision_layer(writer: gguf.GGUFWriter, name: str) -> None:
    for norm in ("ln1", "ln2"):
        _add_norm(writer, f"{name}.{norm}")
    for part in ("attn_q", "attn_k", "attn_v", "attn_out"):
        _add_linear(writer, f"{name}.{part}", VISION_WIDTH, VISION_WIDTH)
    _add_linear(writer, f"{name}.ffn_up", 2 * VISION_WIDTH, VISION_WIDTH)
    _add_linear(writer, f"{name}.ffn_down", VISION_WIDTH, 2 * VISION_WIDTH)


def _add_linear(writer: gguf.GGUFWriter, name: str, rows: int, columns: int) -> None:
    _add(writer, f"{name}.weight", (rows, columns), Kind.F32)
    _add(writer, f"{name}.bias", (rows,), Kind.F32)


def _add_norm(writer: gguf.GGUFWriter, name: str) -> None:
    _add_ones(writer, f"{name}.weight", VISION_WIDTH)
    _add(writer, f"{name}.bias", (VISION_WIDTH,), Kind.F32)


def _add_ones(writer: gguf.GGUFWriter, name: str, size: int) -> None:
    writer.add_tensor(name, np.ones(size, dtype=np.float32))


def _add(writer: gguf.GGUFWriter, name: str, shape: tuple[int, ...], kind: Kind) -> None:
    if kind in (Kind.Q5_K, Kind.Q6_K):
        writer.add_tensor(name, _random_blocks(shape, kind), raw_dtype=kind)
        return
    values = _random.normal(0, 0.05, shape).astype(np.float32)
    writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)


def _random_blocks(shape: tuple[int, ...], kind: Kind) -> NDArray[np.uint8]:
    """Return random weights in blocks of 256; `gguf` reads these kinds and does not write them. Only scales are set."""
    values, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = _random.integers(0, 256, (shape[0], shape[1] // values, size), dtype=np.uint8)
    small = np.frombuffer(np.float16(1e-4).tobytes(), np.uint8)
    if kind is Kind.Q5_K:
        # Scale and minimum of the whole block come first.
        blocks[:, :, 0:2] = blocks[:, :, 2:4] = small
    else:
        blocks[:, :, -2:] = small
    return blocks.reshape(shape[0], -1)


def _close(writer: gguf.GGUFWriter, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tensor_kinds(path: Path) -> set[Any]:
    """Return the kinds of the tensors in a file."""
    return {tensor.tensor_type for tensor in gguf.GGUFReader(path).tensors}
