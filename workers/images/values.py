"""What became of an image."""

from dataclasses import dataclass

_OVERHEAD_BYTES = 1_000


@dataclass(frozen=True)
class Picture:
    """An image that was decoded once, from its first byte to its last."""

    url: str
    """`data:image/png;base64,...` or `data:image/jpeg;base64,...`: upright, opaque, one frame."""

    @property
    def size(self) -> int:
        """Bytes of memory that it takes."""
        return len(self.url) + _OVERHEAD_BYTES


@dataclass(frozen=True)
class Problem:
    """Why an image cannot be used. The words say nothing of what is in it, or of what a library says about it."""

    code: str
    """One of those that the OpenAI API has for images (openai-python `types/responses/response_error.py`)."""
    words: str
    size: int = _OVERHEAD_BYTES
    """0: not remembered, since the next look may find something else."""


@dataclass(frozen=True)
class Stored:
    """An uploaded image."""

    file_id: str
    project_id: str
    sha256: bytes
    length: int
    """Bytes."""
    size: int = _OVERHEAD_BYTES


def not_found(file_id: str) -> Problem:
    """Say that there is no such image: missing, deleted, expired and another project's all look alike."""
    return Problem("image_file_not_found", f"there is no file {file_id!r} with purpose 'vision'", size=0)


def too_many_bytes(limit: int) -> Problem:
    return Problem("image_file_too_large", f"the image has more than {limit:,} bytes")
