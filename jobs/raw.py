"""Reads a file that is just bytes: rows of equal size, so that it is kept, streamed and swept as lines are."""

from jobs.blocks import Blocks
from jobs.errors import InvalidRequest
from jobs.jsonl import Summary

# A range is found within one row, and a page of a download is some of them.
ROW_BYTES = 262_144


class Pieces:
    """The bytes of one file, in rows of `ROW_BYTES`. `feed` every chunk in order, then `end`.

    `param` is the form's field that carries them.
    """

    def __init__(self, blocks: Blocks, param: str = "file") -> None:
        self._blocks, self._param = blocks, param
        self._rows = 0
        self._rest = b""

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the file, many at a time: each call copies those that fill no row yet."""
        data = self._rest + chunk
        whole = len(data) - len(data) % ROW_BYTES
        for start in range(0, whole, ROW_BYTES):
            self._add(data[start : start + ROW_BYTES])
        self._rest = data[whole:]

    def end(self) -> Summary:
        """Take what is left as the last row.

        Raises:
            InvalidRequest: there was not one byte.
        """
        if self._rest:
            self._add(self._rest)
        if not self._rows:
            message = "The file is empty."
            raise InvalidRequest(message, param=self._param, code="empty_file")
        return Summary()

    def _add(self, piece: bytes) -> None:
        self._rows += 1
        self._blocks.add(self._rows, None, piece)
