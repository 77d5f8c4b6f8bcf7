"""Arithmetic of GPU memory: weights, what is left for keys and values, and the rows that fit.

As vLLM 0.26 and 0.33 count (`v1/core/kv_cache_utils.py`): memory is handed out in blocks of 16 tokens. Layers of one
kind of attention are cut into groups of equal size (of Gemma 3 27B's 62: one group of 10 global layers, six of up to 10
local ones), each group of a row has blocks of its own, and a block holds its 16 tokens for all layers of a group.
Groups that are not full waste the rest. A local group needs blocks for its window only.

Nothing here needs a GPU or an engine.
"""

from collections import Counter
from dataclasses import dataclass

from jobs.settings import LlamaCpp, Vllm
from workers.engines.shapes import Shape

GIB = 2**30
# vLLM's own on NVIDIA GPUs.
BLOCK_TOKENS = 16
# With asynchronous scheduling the step that runs and the one that is prepared hold blocks.
_STEPS_AT_ONCE = 2
# What neither weights nor a step explain: context, workspaces of the libraries, CUDA graphs. It makes both measured
# pools of Gemma 3 27B on an H100 come out within 3 % (vLLM 0.26, 512 sequences, steps of 16,384 tokens).
_FIXED_BYTES = int(1.4 * GIB)
# Logits in 16 and in 32 bits, probabilities and noise.
_SAMPLER_BYTES_PER_LOGIT = 14
# llama.cpp: graph and logits of a step of 512 tokens, context of the driver. Estimated.
_LLAMACPP_FIXED_BYTES = int(1.1 * GIB)
_LLAMACPP_STEP_TOKENS = 512
# Bits of a weight with its scales, by the name of the file; embeddings stay in 16 bits, as in Google's own files.
_GGUF_BITS = {"q4_0": 4.5, "q4_k_m": 4.85, "q5_k_m": 5.7, "q6_k": 6.6, "q8_0": 8.5, "f16": 16.0, "bf16": 16.0}


@dataclass(frozen=True)
class Pool:
    """The KV cache of one replica on GPUs that hold the same. Bytes are those of one GPU."""

    gpu_bytes: int
    engine_bytes: int
    """What the engine may take: its share of `gpu_bytes`."""
    weight_bytes: int
    step_bytes: int
    """Activations, sampling, image encoder, libraries, CUDA graphs: an estimate."""
    kv_bytes: int
    """What is left. Below 0: the weights do not fit."""
    token_bytes: int
    """A key and a value in every layer."""
    block_bytes: int
    blocks: int
    group_windows: tuple[int | None, ...]
    """For each group of layers the window of its attention; None for all tokens."""
    context_tokens: int
    step_tokens: int

    def row_blocks(self, tokens: int) -> int:
        """Return the blocks that a row of so many tokens holds while it is decoded."""
        return sum(_group_blocks(window, tokens) for window in self.group_windows)

    def rows(self, tokens: int) -> int:
        """Return how many rows of so many tokens each fit."""
        return self.blocks // self.row_blocks(tokens)

    @property
    def short_row_tokens(self) -> int:
        """Tokens that fit in rows no longer than the window."""
        return self.blocks // len(self.group_windows) * BLOCK_TOKENS

    @property
    def short_token_bytes(self) -> int:
        """What a token of such a row takes, groups that are not full included; a later one takes `long_token_bytes`."""
        return len(self.group_windows) * self.block_bytes // BLOCK_TOKENS

    @property
    def long_token_bytes(self) -> int:
        return self.group_windows.count(None) * self.block_bytes // BLOCK_TOKENS

    @property
    def reported_tokens(self) -> int:
        """What vLLM logs as "GPU KV cache size": rows of the whole context that fit, times the context.

        It counts a row at its worst, in the middle of its prompt, when a local group holds two steps besides its
        window; so a row of the context that fits on paper is not refused.
        """
        return int(self.blocks / self._worst_blocks * self.context_tokens)

    @property
    def _worst_blocks(self) -> int:
        in_flight = _STEPS_AT_ONCE * self.step_tokens
        return sum(
            _ceil(self.context_tokens, BLOCK_TOKENS)
            if window is None
            else _ceil(min(window - 1 + in_flight, self.context_tokens), BLOCK_TOKENS) + 1
            for window in self.group_windows
        )


def _group_blocks(window: int | None, tokens: int) -> int:
    if window is None or tokens <= window:
        return _ceil(tokens, BLOCK_TOKENS)
    # The window seldom begins where a block does.
    return _ceil(window, BLOCK_TOKENS) + 1


def pool(shape: Shape, settings: Vllm, gpu_bytes: int) -> Pool:
    """Return what vLLM will find room for on each of the GPUs."""
    engine_bytes = int(gpu_bytes * settings.gpu_memory_share)
    weights, step = weight_bytes(shape, settings), step_bytes(shape, settings)
    windows, layers = groups(shape.windows)
    layers_here, group_layers = (_ceil(number, settings.pipeline_parallel) for number in (len(shape.windows), layers))
    token_bytes = layer_token_bytes(shape, settings)
    block_bytes = group_layers * BLOCK_TOKENS * token_bytes
    left = engine_bytes - weights - step
    return Pool(
        gpu_bytes=gpu_bytes,
        engine_bytes=engine_bytes,
        weight_bytes=weights,
        step_bytes=step,
        kv_bytes=left,
        token_bytes=layers_here * token_bytes,
        block_bytes=block_bytes,
        blocks=max(0, left // block_bytes),
        group_windows=windows,
        context_tokens=settings.context_tokens or shape.context_tokens,
        step_tokens=settings.step_tokens,
    )


def groups(windows: tuple[int | None, ...]) -> tuple[tuple[int | None, ...], int]:
    """Return the windows of vLLM's groups of layers, and how many layers each group has room for."""
    kinds = Counter(windows)
    fewest, most = min(kinds.values()), max(kinds.values())
    # Its own rule: kinds that are almost as frequent are filled up rather than cut.
    size = most if most < 1.5 * fewest else fewest
    grouped = [window for window, layers in kinds.items() for _ in range(_ceil(layers, size))]
    return tuple(grouped), size


def layer_token_bytes(shape: Shape, settings: Vllm) -> int:
    """Return the bytes of one token's key and value in one layer on one GPU."""
    heads = max(1, shape.kv_heads // settings.tensor_parallel)
    return 2 * heads * shape.head_dim * (1 if settings.kv_cache == "fp8" else _type_bytes(settings))


def weight_bytes(shape: Shape, settings: Vllm) -> int:
    """Return the bytes of weights on one GPU; embeddings and image encoder are never quantised."""
    vision = shape.vision.parameters * _type_bytes(settings) if shape.vision else 0
    if shape.file_bytes and settings.quantization == "checkpoint":
        whole = shape.file_bytes - (0 if settings.images_per_request else vision)
        return whole // (settings.tensor_parallel * settings.pipeline_parallel)
    bits = 8 if settings.quantization == "fp8" else shape.weight_bits or 8 * _type_bytes(settings)
    layers = shape.layer_parameters * bits / 8 / settings.pipeline_parallel
    embeddings = shape.embedding_parameters * _type_bytes(settings)
    return int((layers + embeddings) / settings.tensor_parallel) + (vision if settings.images_per_request else 0)


def step_bytes(shape: Shape, settings: Vllm) -> int:
    """Return what a step takes besides weights and keys and values: the largest of its parts, and a fixed amount."""
    parts = (_activation_bytes(shape, settings), _sampler_bytes(shape, settings), _image_bytes(shape, settings))
    return _FIXED_BYTES + max(parts)


def _activation_bytes(shape: Shape, settings: Vllm) -> int:
    """Gate, up, their product, and the stream before and after the layer."""
    values = 3 * shape.intermediate // settings.tensor_parallel + 2 * shape.hidden
    return settings.step_tokens * values * _type_bytes(settings)


def _sampler_bytes(shape: Shape, settings: Vllm) -> int:
    return settings.max_sequences * shape.vocabulary * _SAMPLER_BYTES_PER_LOGIT


def _image_bytes(shape: Shape, settings: Vllm) -> int:
    """As many images as a step has room for go through the encoder at once."""
    if not shape.vision or not settings.images_per_request:
        return 0
    most = settings.max_sequences * settings.images_per_request
    images = min(max(1, settings.step_tokens // shape.vision.tokens), most)
    values = shape.vision.patches * (shape.vision.intermediate + 4 * shape.vision.hidden)
    return images * values * _type_bytes(settings)


def _type_bytes(settings: Vllm) -> int:
    return 4 if settings.dtype == "float32" else 2


@dataclass(frozen=True)
class Slots:
    """The memory of llama.cpp with all layers on one GPU. Bytes."""

    gpu_bytes: int
    weight_bytes: int
    slot_bytes: int
    """Keys and values of one request, taken for the whole context when the engine starts."""
    step_bytes: int
    slots: int

    @property
    def left_bytes(self) -> int:
        return self.gpu_bytes - self.weight_bytes - self.step_bytes - self.slots * self.slot_bytes


def slots(shape: Shape, settings: LlamaCpp, gpu_bytes: int) -> Slots:
    """Return what llama.cpp will take. Its keys and values have 16 bits; a local layer holds its window and a step."""
    tokens = sum(
        min(settings.context_tokens, _ceil(window + _LLAMACPP_STEP_TOKENS, 256) * 256)
        if window
        else settings.context_tokens
        for window in shape.windows
    )
    return Slots(
        gpu_bytes=gpu_bytes,
        weight_bytes=shape.file_bytes or gguf_bytes(shape, str(settings.model_path)),
        slot_bytes=tokens * 2 * shape.kv_heads * shape.head_dim * 2,
        step_bytes=_LLAMACPP_FIXED_BYTES,
        slots=settings.parallel_requests,
    )


def gguf_bytes(shape: Shape, name: str) -> int:
    """Return about how large a GGUF file is, by the kind that its name says; 16 bits if it says none."""
    bits = next((bits for kind, bits in _GGUF_BITS.items() if kind in name.lower()), 16.0)
    return int(shape.layer_parameters * bits / 8) + 2 * shape.embedding_parameters


def _ceil(number: int, unit: int) -> int:
    return -(-number // unit)
