"""Where the images of a chat body are, and what each one is given as. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, model_validator

from jobs.errors import RequestRejected
from workers.engines import parameters
from workers.engines.base import Body
from workers.engines.strict import Strict


class Reference(Strict):
    """An image by its address or by an uploaded file."""

    url: str | None = Field(None, min_length=1)
    file_id: str | None = Field(None, min_length=1, max_length=200)
    detail: Literal["low", "high", "auto"] | None = None

    @model_validator(mode="after")
    def _is_one(self) -> "Reference":
        if (self.url is None) == (self.file_id is None):
            message = "it has either url or file_id"
            raise ValueError(message)
        return self


class _Part(Strict):
    type: Literal["image_url"]
    image_url: Reference


@dataclass(frozen=True)
class Place:
    """One image of a body."""

    message: int
    part: int
    is_users: bool
    """The message is the user's; no other may have images."""
    given: Body

    @property
    def param(self) -> str:
        return f"messages.{self.message}.content.{self.part}"

    def reference(self) -> Reference:
        """Return what the image is given as.

        Raises:
            RequestRejected: it is not as the API has it.
        """
        if not self.is_users:
            raise self.refused("only the user's messages have images")
        try:
            return parameters.check(_Part, self.given).image_url
        except RequestRejected as error:
            param = f"{self.param}.{error.param}" if error.param else self.param
            message = error.message.replace(f"'{error.param}'", f"'{param}'")
            raise RequestRejected(message, code=error.code, param=param) from None

    def refused(self, words: str, code: str = "invalid_value", field: str = "") -> RequestRejected:
        param = self.param + field
        return RequestRejected(f"Invalid value for '{param}': {words}.", code=code, param=param)


def find(body: Body) -> list[Place]:
    """Return the places of all images, in order. What is no chat body is left to whoever checks it."""
    return [
        Place(number, index, message.get("role") == "user", part)
        for number, message in enumerate(_items(body.get("messages")))
        for index, part in enumerate(_items(message.get("content")))
        if part.get("type") == "image_url"
    ]


def _items(value: Any) -> Sequence[Body]:  # noqa: ANN401  any JSON
    """Return a list, with an empty object in the place of each item that is no object."""
    return [item if isinstance(item, dict) else {} for item in value] if isinstance(value, list) else ()


def replaced(body: Body, urls: Sequence[tuple[Place, Reference, str]]) -> Body:
    """Return the body with each image as the URL that belongs to its place; the given one stays as it is."""
    messages = [dict(message) if isinstance(message, dict) else message for message in body["messages"]]
    for number in {place.message for place, _, _ in urls}:
        messages[number]["content"] = list(messages[number]["content"])
    for place, reference, url in urls:
        image = parameters.without_null({"url": url, "detail": reference.detail})
        messages[place.message]["content"][place.part] = {"type": "image_url", "image_url": image}
    return {**body, "messages": messages}
