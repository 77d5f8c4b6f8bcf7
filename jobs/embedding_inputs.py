"""How many texts one request wants embedded. Pure.

The Batch API bounds them over all requests of a file, beside the requests themselves.
"""

import msgspec

from jobs.lines import Line
from jobs.protocol import EMBEDDINGS

_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode


def count(line: Line) -> int:
    """Return the number of inputs: one for a text or a list of tokens, else one for each item of the list.

    Requests for other endpoints have none. What is no input at all counts as one; the engine refuses it.
    """
    if line.url != EMBEDDINGS or isinstance(line.body.input, msgspec.UnsetType):
        return 0
    raw = bytes(line.body.input)
    if not raw.startswith(b"["):
        return 1
    items = _decode_list(raw)
    return len(items) if items and bytes(items[0]).startswith((b'"', b"[")) else 1
