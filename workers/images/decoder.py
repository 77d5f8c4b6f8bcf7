"""A process that looks at images: what decoders do with bytes of strangers, they do here and not beside the engine.

It has no environment, writes no file, and is bounded in memory and in CPU time for each image. Over its standard input
and output it answers one image after the other, until its parent closes the pipe or is gone:

    asked      8 bytes, the size; the image
    answered   4 bytes, the size; a JSON object; the image anew, if `size` in the object is not 0
"""

import json
import resource
import signal
import struct
import sys
import warnings
from io import BytesIO
from typing import Any, BinaryIO

from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

# Taken by what the bytes are, whatever they are said to be.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
# Every engine reads these, so they go through as they are. MPO is what phones make: a JPEG with a second one behind it.
PASSED = {"PNG": "png", "JPEG": "jpeg", "MPO": "jpeg"}
CPU_SECONDS = 20.0
# Python and Pillow; and for each pixel the decoded image, a second one while it is turned, and what decoders need.
BASE_MEMORY, BYTES_PER_PIXEL = 600_000_000, 16

Answer = tuple[dict[str, Any], bytes]


def main() -> None:
    """Answer until the end of input. Arguments: most pixels, most bytes of an image."""
    max_pixels, max_bytes = (int(argument) for argument in sys.argv[1:3])
    limit(max_pixels, max_bytes)
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    while len(head := source.read(8)) == 8:
        data = source.read(struct.unpack(">Q", head)[0])
        # Out of time, the system ends the process: no decoder can hold that up.
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        answer = look_at(data, max_pixels)
        signal.setitimer(signal.ITIMER_PROF, 0)
        _send(sink, answer)


def limit(max_pixels: int, max_bytes: int) -> None:
    """Bound what this process may take from now on."""
    memory = BASE_MEMORY + BYTES_PER_PIXEL * max_pixels + 4 * max_bytes
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Pillow's own guard comes before ours where a plugin finds a frame that is larger than its image says.
    Image.MAX_IMAGE_PIXELS = max_pixels
    warnings.simplefilter("error", Image.DecompressionBombWarning)


def look_at(data: bytes, max_pixels: int) -> Answer:
    """Decode an image to its end. Return its format and what it became, or the code of what is wrong."""
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                return {"problem": "image_too_large"}, b""
            return _read(image)
    except UnidentifiedImageError:
        return {"problem": "unsupported_image_media_type"}, b""
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        return {"problem": "image_too_large"}, b""
    except Exception:  # noqa: BLE001  whatever a decoder raises; its words may quote the image
        return {"problem": "image_parse_error"}, b""


def _read(image: Image.Image) -> Answer:
    kind = PASSED.get(str(image.format))
    if kind != "jpeg":
        # Where a PNG is turned may stand behind its pixels.
        image.load()
    turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    if kind and not turned and not image.has_transparency_data and image.mode != "CMYK":
        # A JPEG is read to its end this way too, in a fraction of the time and memory.
        image.draft(image.mode, (1, 1))
        image.load()
        return {"format": kind, "size": 0}, b""
    into = BytesIO()
    if kind == "jpeg":
        _redrawn(image).save(into, "JPEG", quality=95, subsampling=0)
    else:
        kind = "png"
        _redrawn(image).save(into, "PNG", compress_level=1)
    return {"format": kind, "size": len(into.getvalue())}, into.getvalue()


def _redrawn(image: Image.Image) -> Image.Image:
    """Return the image upright, opaque (on white, as vLLM has it) and in the colours of a screen."""
    upright = ImageOps.exif_transpose(image)
    if upright.has_transparency_data:
        white = Image.new("RGBA", upright.size, "white")
        upright = Image.alpha_composite(white, upright.convert("RGBA"))
    return upright.convert("RGB")


def _send(sink: BinaryIO, answer: Answer) -> None:
    head, data = answer
    line = json.dumps(head).encode()
    sink.write(struct.pack(">I", len(line)) + line + data)
    sink.flush()


if __name__ == "__main__":
    main()
