"""What a decoder makes of an image, where images are in a body, and how values are shared."""

import asyncio
import io
from dataclasses import dataclass
from typing import Any

import pictures
import pytest
from PIL import Image

from jobs.errors import RequestRejected
from workers.images import decoder, references
from workers.images.sharing import Shared

PIXELS = 1_000_000


def seen(data: bytes, max_pixels: int = PIXELS) -> dict[str, Any]:
    head, drawn = decoder.look_at(data, max_pixels)
    assert len(drawn) == head.get("size", 0)
    return head


def drawn(data: bytes) -> Image.Image:
    """Return the image that an engine gets in the place of this one."""
    head, again = decoder.look_at(data, PIXELS)
    image = Image.open(io.BytesIO(again))
    assert (image.format or "").lower() == head["format"]
    return image.convert("RGB")


# The decoder.


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (pictures.encoded("png"), "png"),
        (pictures.encoded("png", mode="L"), "png"),
        (pictures.encoded("png", mode="P"), "png"),
        (pictures.encoded("jpeg"), "jpeg"),
        (pictures.encoded("jpeg", progressive=True), "jpeg"),
        (pictures.encoded("mpo"), "jpeg"),
    ],
)
def test_what_every_engine_reads_goes_through_as_it_is(data: bytes, kind: str) -> None:
    assert seen(data) == {"format": kind, "size": 0}


@pytest.mark.parametrize("kind", ["webp", "gif"])
def test_other_formats_become_png(kind: str) -> None:
    image = drawn(pictures.encoded(kind))
    assert image.size == (64, 48)
    assert (near(image, (5, 5), (255, 0, 0)), near(image, (60, 40), (255, 255, 255))) == (True, True)


def near(image: Image.Image, place: tuple[int, int], colour: tuple[int, int, int]) -> bool:
    pixel = image.getpixel(place)
    assert isinstance(pixel, tuple)
    return all(abs(one - other) < 10 for one, other in zip(pixel, colour, strict=True))


def test_an_animation_is_its_first_frame() -> None:
    into = io.BytesIO()
    first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    first.save(into, "GIF", save_all=True, append_images=[second])
    assert near(drawn(into.getvalue()), (4, 4), (255, 0, 0))


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp"])
def test_an_image_on_its_side_is_set_upright(kind: str) -> None:
    """Engines that know nothing of EXIF would see it lying."""
    image = drawn(pictures.turned(kind))
    assert image.size == (48, 64)
    assert near(image, (24, 5), (255, 0, 0)), "the left half is on top"


def test_what_is_transparent_becomes_white() -> None:
    data = io.BytesIO()
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(data, "PNG")
    assert near(drawn(data.getvalue()), (4, 4), (255, 255, 255))


def test_colours_for_print_become_colours_for_screens() -> None:
    data = io.BytesIO()
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(data, "JPEG", quality=95)
    assert near(drawn(data.getvalue()), (4, 4), (255, 0, 0))


BROKEN = {kind: pictures.encoded(kind, (300, 200)) for kind in ("png", "jpeg", "webp", "gif")}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_f92_an_image_that_was_cut_off_is_found(kind: str, share: float) -> None:
    data = BROKEN[kind]
    assert seen(data[: int(len(data) * share)])["problem"] in ("image_parse_error", "unsupported_image_media_type")


@pytest.mark.parametrize(
    "data",
    [
        b"x",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF-1.7",
        b"\x00\x00\x00\x0cjP  \r\n\x87\n" + b"\0" * 100,
        pictures.encoded("jpeg2000"),
        pictures.encoded("tiff"),
        pictures.encoded("bmp"),
        pictures.encoded("ppm"),
        pictures.encoded("ico"),
    ],
)
def test_f92_formats_that_are_not_listed_are_not_even_tried(data: bytes) -> None:
    assert seen(data) == {"problem": "unsupported_image_media_type"}


@pytest.mark.parametrize("size", [(50_000, 50_000), (2**31 - 1, 2**31 - 1), (1, PIXELS + 1), (PIXELS + 1, 1)])
def test_f92_an_image_with_too_many_pixels_is_not_decoded(size: tuple[int, int]) -> None:
    assert seen(pictures.png_of(*size)) == {"problem": "image_too_large"}


def test_f92_a_frame_that_is_larger_than_its_image_is_found() -> None:
    data = bytearray(pictures.encoded("gif", (8, 8)))
    at = data.index(b"\x2c", 13 + 3 * 2 ** ((data[10] & 7) + 1))
    data[at + 5 : at + 9] = b"\xff\xff\xff\xff"
    assert seen(bytes(data))["problem"] in ("image_too_large", "image_parse_error")


@pytest.mark.parametrize("size", [(0, 0), (0, 5)])
def test_f92_an_image_without_pixels_is_broken(size: tuple[int, int]) -> None:
    assert "problem" in seen(pictures.png_of(*size))


def test_f92_an_image_of_one_pixel_is_an_image() -> None:
    assert seen(pictures.encoded("png", (1, 1)))["format"] == "png"


def test_the_largest_image_is_taken() -> None:
    assert "problem" not in seen(pictures.encoded("png", (100, 100)), max_pixels=10_000)
    assert "problem" in seen(pictures.encoded("png", (100, 101)), max_pixels=10_000)


# Where images are.

URL = pictures.data_url(b"x")


def test_images_are_found_in_order_and_replaced_where_they_stood() -> None:
    body = {
        "model": "m",
        "messages": [
            {"role": "system", "content": "look"},
            {"role": "user", "content": [pictures.text("a"), pictures.part("1"), pictures.part("2")]},
            {"role": "user", "content": [{"type": "image_url", "image_url": {"file_id": "f", "detail": "low"}}]},
        ],
    }
    before = repr(body)
    places = references.find(body)
    assert [place.param for place in places] == ["messages.1.content.1", "messages.1.content.2", "messages.2.content.0"]
    done = references.replaced(body, [(place, place.reference(), f"new {n}") for n, place in enumerate(places)])
    assert [part["image_url"] for part in done["messages"][1]["content"][1:]] == [{"url": "new 0"}, {"url": "new 1"}]
    assert done["messages"][2]["content"][0]["image_url"] == {"url": "new 2", "detail": "low"}
    assert repr(body) == before


@pytest.mark.parametrize("messages", [None, "x", [None], ["x"], [{}], [{"content": 5}], [{"content": [None, "x", []]}]])
def test_what_is_no_chat_body_has_no_images(messages: Any) -> None:
    assert references.find({"messages": messages}) == []


@pytest.mark.parametrize(
    ("image", "param"),
    [
        (None, "image_url"),
        ("https://example.com/a.png", "image_url"),
        ({}, "image_url"),
        ({"url": ""}, "image_url.url"),
        ({"url": 5}, "image_url.url"),
        ({"url": ["x"]}, "image_url.url"),
        ({"url": URL, "file_id": "file-1"}, "image_url"),
        ({"file_id": ""}, "image_url.file_id"),
        ({"file_id": "x" * 201}, "image_url.file_id"),
        ({"url": URL, "detail": "huge"}, "image_url.detail"),
        ({"url": URL, "uuid": "x"}, "image_url.uuid"),
        ({"url": URL, "mm_processor_kwargs": {}}, "image_url.mm_processor_kwargs"),
    ],
)
def test_what_is_wrong_with_an_image_is_named(image: Any, param: str) -> None:
    part = {"type": "image_url", "image_url": image}
    (place,) = references.find({"messages": pictures.user(pictures.text("a"), part)})
    with pytest.raises(RequestRejected) as caught:
        place.reference()
    assert caught.value.param == f"messages.0.content.1.{param}"
    assert f"'{caught.value.param}'" in caught.value.message


@pytest.mark.parametrize("role", ["system", "developer", "assistant", "tool", None])
def test_only_the_user_shows_images(role: Any) -> None:
    (place,) = references.find({"messages": [{"role": role, "content": [pictures.part(URL)]}]})
    with pytest.raises(RequestRejected) as caught:
        place.reference()
    assert caught.value.param == "messages.0.content.0"


# Sharing.


@dataclass(frozen=True)
class Item:
    name: str
    size: int = 10


class Maker:
    """Makes an item when it is told to."""

    def __init__(self, item: Item | Exception) -> None:
        self.item, self.made, self.go_on = item, 0, asyncio.Event()

    async def __call__(self) -> Item:
        self.made += 1
        await self.go_on.wait()
        if isinstance(self.item, Exception):
            raise self.item
        return self.item


def test_whoever_asks_meanwhile_waits_for_the_same_one() -> None:
    async def story() -> None:
        shared, maker = Shared[Item](100), Maker(Item("a"))
        asking = [asyncio.create_task(shared.get("a", maker)) for _ in range(3)]
        await asyncio.sleep(0)
        asking[0].cancel()
        await asyncio.sleep(0)
        maker.go_on.set()
        assert await asyncio.gather(*asking[1:]) == [maker.item, maker.item]
        assert await shared.get("a", maker) == maker.item
        assert maker.made == 1

    asyncio.run(story())


def test_what_was_asked_for_longest_ago_goes_first() -> None:
    async def story() -> list[int]:
        shared, makers = Shared[Item](20), {name: Maker(Item(name)) for name in "abc"}
        for maker in makers.values():
            maker.go_on.set()
        for name in "abacab":
            await shared.get(name, makers[name])
        return [maker.made for maker in makers.values()]

    # c takes the place of b, which was asked for before a.
    assert asyncio.run(story()) == [1, 2, 1]


@pytest.mark.parametrize("item", [Item("nothing", 0), Item("all", 101), ValueError("no")])
def test_what_has_no_room_and_what_failed_is_made_again(item: Item | ValueError) -> None:
    async def story() -> int:
        shared, maker = Shared[Item](100), Maker(item)
        maker.go_on.set()
        for _ in range(2):
            await asyncio.gather(shared.get("a", maker), return_exceptions=True)
        return maker.made

    assert asyncio.run(story()) == 2


def test_closing_ends_what_is_under_way() -> None:
    async def story() -> None:
        shared = Shared[Item](100)
        asking = asyncio.create_task(shared.get("a", Maker(Item("a"))))
        await asyncio.sleep(0)
        await shared.close()
        with pytest.raises(asyncio.CancelledError):
            await asking

    asyncio.run(story())
