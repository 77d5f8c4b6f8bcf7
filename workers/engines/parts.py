"""The parts that a message may have at an engine's door: text, and images that `workers.images` has checked.

An engine would fetch an address by itself, or give the bytes to a decoder of its own; so nothing else gets this far.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Tag, ValidationInfo

from workers.engines.strict import Strict

CHECKED = ("data:image/png;base64,", "data:image/jpeg;base64,")


def _is_checked(url: str) -> str:
    if not url.startswith(CHECKED):
        message = "images reach an engine as data: URLs, PNG or JPEG"
        raise ValueError(message)
    return url


class ImageUrl(Strict):
    """An image. `detail` has no effect where the engine knows one size only."""

    url: Annotated[str, AfterValidator(_is_checked)]
    detail: Literal["low", "high", "auto"] | None = None


class ImagePart(Strict):
    """An image in a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


class TextPart(Strict):
    """A text in a message."""

    type: Literal["text"]
    text: str


def _kind(part: Any) -> str:  # noqa: ANN401  any JSON, or one of our own parts on its way out
    """Name what a part is meant to be, so that an error is about that and nothing else."""
    kind = part.get("type") if isinstance(part, dict) else getattr(part, "type", "")
    return "part[image]" if kind == "image_url" else "part[text]"


Part = Annotated[
    Annotated[TextPart, Tag("part[text]")] | Annotated[ImagePart, Tag("part[image]")], Discriminator(_kind)
]


def _images_are_the_users(content: str | list[Part], info: ValidationInfo) -> str | list[Part]:
    if info.data.get("role") != "user" and any(isinstance(part, ImagePart) for part in content):
        message = "only the user's messages have images"
        raise ValueError(message)
    return content


Content = Annotated[str | list[Part], AfterValidator(_images_are_the_users)]
