"""How many texts one request wants embedded. Pure.

The Batch API bounds them over all requests of a file, beside the requests themselves.
"""

import msgspec

from jobs.lines import Line
from jobs.protocol import EMBEDDINGS


def count(line: Line) -> int:
    """Return the number of inputs: one for a text or a list of tokens, else one for each item of the list.

    Requests for other endpoints have none. What is no input at all counts as one; the engine refuses it.
    """
    inputs = line.body.input
    if line.url != EMBEDDINGS or inputs is msgspec.UNSET:
        return 0
    if isinstance(inputs, list) and inputs and isinstance(inputs[0], str | list):
        return len(inputs)
    return 1
