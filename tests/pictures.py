"""Images for tests."""

import base64
import io
import struct
import zlib
from typing import Any

from PIL import ExifTags, Image


def encoded(kind: str = "png", size: tuple[int, int] = (64, 48), mode: str = "RGB", **options: Any) -> bytes:
    """Return an image with a red left half, in a format of Pillow's."""
    image = Image.new(mode, size, "white")
    image.paste(Image.new(mode, (max(1, size[0] // 2), size[1]), "red"), (0, 0))
    into = io.BytesIO()
    image.save(into, kind.upper(), **options)
    return into.getvalue()


def turned(kind: str = "jpeg", size: tuple[int, int] = (64, 48)) -> bytes:
    """Return an image that says that it lies on its side, as a phone's camera does."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    return encoded(kind, size, exif=exif)


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def part(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def user(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    """Return messages with one turn of these parts."""
    return [{"role": "user", "content": list(parts)}]


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def png_of(width: int, height: int, rows: bytes = b"") -> bytes:
    """Return a PNG that says that it has this size, whatever is in it."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )
