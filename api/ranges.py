"""The `Range` header, as far as downloads need it: RFC 9110, section 14. Pure."""

import re
from dataclasses import dataclass

_ONE_RANGE = re.compile(r"bytes=([0-9]{0,15})-([0-9]{0,15})")


@dataclass(frozen=True)
class Range:
    """A run of bytes of a file."""

    start: int
    length: int

    def content_range(self, size: int) -> str:
        return f"bytes {self.start}-{self.start + self.length - 1}/{size}"


class Unsatisfiable(Exception):
    """The range lies beyond the end of the file."""


def parse(header: str | None, size: int) -> Range | None:
    """Return the bytes that are asked for; None for all of them, also when several ranges are asked for.

    Raises:
        Unsatisfiable: there are no such bytes.
    """
    match = _ONE_RANGE.fullmatch((header or "").replace(" ", ""))
    if not match or match[0] == "bytes=-":
        return None
    if not match[1]:
        start, end = max(0, size - int(match[2])), size - 1
    else:
        start, end = int(match[1]), min(int(match[2] or size), size - 1)
        if match[2] and int(match[2]) < start:
            return None
    if start >= size or end < start:
        raise Unsatisfiable
    return Range(start, end - start + 1)
