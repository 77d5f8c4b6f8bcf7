"""The arithmetic of GPU memory, against what vLLM 0.26 found on an H100 with weights of Gemma 3 27B's shape."""

import pytest

from jobs.settings import LlamaCpp, Vllm
from workers.engines import kv, shapes

GEMMA = "google/gemma-3-27b-it"
# What vLLM saw of it.
H100 = int(79.6 * kv.GIB)
GLOBAL = None


def measured(**more: object) -> Vllm:
    """The arguments of the two measurements."""
    return Vllm(model=GEMMA, context_tokens=4096, max_sequences=512, step_tokens=16_384, **more)


@pytest.mark.parametrize(("quantization", "tokens"), [("checkpoint", 35_317), ("fp8", 81_000)])
def test_the_pool_is_the_one_that_vllm_reported(quantization: str, tokens: int) -> None:
    pool = kv.pool(shapes.of_model(GEMMA), measured(quantization=quantization), H100)
    # A step's memory is one estimate for both. Half a GiB of error, of a step's 3.7, is 2.6 % of the smaller pool.
    assert pool.reported_tokens == pytest.approx(tokens, rel=0.03)


def test_blocks_are_counted_as_vllm_does() -> None:
    """Exact: from the reported pool to bytes and back nothing is estimated."""
    pool = kv.pool(shapes.of_model(GEMMA), measured(), H100)
    assert pool.group_windows.count(1024) == 6
    assert pool.group_windows.count(GLOBAL) == 1
    # Ten layers of 16 tokens, 16 heads of 128, key and value, two bytes.
    assert pool.block_bytes == 10 * 16 * 16 * 128 * 2 * 2
    # 4,096 tokens: 256 blocks of the global group, and one more in each local one.
    assert pool.reported_tokens == pool.blocks * 4096 // (256 + 6 * 257)


def test_a_token_of_gemma_takes_508_kb_up_to_the_window_and_82_beyond() -> None:
    pool = kv.pool(shapes.of_model(GEMMA), measured(), H100)
    assert pool.token_bytes == 62 * 8192
    # Sixty local places for 52 layers.
    assert pool.short_token_bytes == 70 * 8192
    assert pool.long_token_bytes == 10 * 8192


def test_a_long_row_holds_its_window_only() -> None:
    pool = kv.pool(shapes.of_model(GEMMA), measured(), H100)
    assert pool.row_blocks(16) == 7
    assert pool.row_blocks(17) == 14
    assert pool.row_blocks(1024) == 7 * 64
    assert pool.row_blocks(4096) == 256 + 6 * 65
    assert pool.rows(4096) == pool.blocks // (256 + 6 * 65)


def test_fp8_keys_and_values_double_the_pool() -> None:
    shape = shapes.of_model(GEMMA)
    half, whole = (kv.pool(shape, measured(kv_cache=kind), H100).short_row_tokens for kind in ("auto", "fp8"))
    assert whole == pytest.approx(2 * half, rel=0.001)


def test_tensor_parallel_halves_weights_and_heads() -> None:
    shape = shapes.of_model(GEMMA)
    one, two = (kv.pool(shape, measured(tensor_parallel=gpus), H100) for gpus in (1, 2))
    assert two.weight_bytes == one.weight_bytes // 2
    assert two.block_bytes == one.block_bytes // 2
    assert two.short_row_tokens > 4 * one.short_row_tokens


def test_pipeline_parallel_shares_out_the_layers() -> None:
    shape = shapes.of_model(GEMMA)
    one, two = (kv.pool(shape, measured(pipeline_parallel=stages), H100) for stages in (1, 2))
    assert two.block_bytes == one.block_bytes // 2
    # The embedding is on the first GPU and, as output layer, on the last.
    assert one.weight_bytes // 2 < two.weight_bytes < one.weight_bytes


def test_images_take_the_encoder_and_its_activations() -> None:
    shape = shapes.of_model(GEMMA)
    without, with_images = (kv.pool(shape, measured(images_per_request=images), H100) for images in (0, 4))
    assert with_images.weight_bytes - without.weight_bytes == pytest.approx(0.8e9, rel=0.05)
    assert with_images.step_bytes > without.step_bytes


def test_weights_that_do_not_fit_leave_less_than_nothing() -> None:
    pool = kv.pool(shapes.of_model(GEMMA), measured(), 40 * kv.GIB)
    assert pool.kv_bytes < 0
    assert pool.blocks == 0


@pytest.mark.parametrize(
    ("windows", "grouped"),
    [
        ((GLOBAL,) * 30, ((GLOBAL,), 30)),
        ((1024,) * 30, ((1024,), 30)),
        # Almost as frequent: filled up. Else cut to the fewest.
        ((GLOBAL,) * 13 + (128,) * 12, ((GLOBAL, 128), 13)),
        ((GLOBAL,) * 10 + (128,) * 20, ((GLOBAL, 128, 128), 10)),
        ((GLOBAL,) * 4 + (512,) * 22, ((GLOBAL, *(512,) * 6), 4)),
    ],
)
def test_layers_are_grouped_as_vllm_does(
    windows: tuple[int | None, ...], grouped: tuple[tuple[int | None, ...], int]
) -> None:
    assert kv.groups(windows) == grouped


def test_llama_cpp_takes_the_whole_context_for_each_request() -> None:
    shape = shapes.of_model(GEMMA)
    settings = LlamaCpp(model_path="gemma-3-27b-it-q4_0.gguf", context_tokens=4096, parallel_requests=4)
    slots = kv.slots(shape, settings, 24 * kv.GIB)
    # Ten global layers of 4,096 tokens, 52 local ones of 1,024 and a step of 512.
    assert slots.slot_bytes == (10 * 4096 + 52 * 1536) * 8192
    # Google's own file has 17.2 GB.
    assert slots.weight_bytes == pytest.approx(17.2e9, rel=0.01)
    assert slots.left_bytes == 24 * kv.GIB - slots.weight_bytes - slots.step_bytes - 4 * slots.slot_bytes
